"""The same two dozen pages from release to release: what a person who tries huaben sees.

Every page is one message, read, laid out and painted as ``huaben draw`` does. Beside the sheet, which is for eyes, stands
what the detector reads on each page; a page is right when every character is right in everything the page says of it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from ..rng import stream_seed
from ..session import drawing_prompt
from ..stations import Stations, load_detector, load_painter, load_screenwriter
from ..theater.cast import Cast
from ..theater.performance import MAX_PICTURE_SEED, PerformanceConfig, find_characters, perform
from .experiment import bootstrap

PAGES: tuple[str, ...] = (
    "a red cat with glasses on the beach",
    "画一只戴皇冠的棕色狮子在草地上",
    "an angry green frog and a sad pink pig in the forest",
    "夜晚，一只困倦的棕色猫头鹰和一颗黄色的星星",
    "a brown dog and a brown bear in a room, crayon style",
    "剪纸风格：雪地上的一只白色兔子和一只黑色企鹅",
    "a gray elephant with headphones facing left in the desert",
    "皮影风格：山里一只生气的黑色猫和一只惊讶的红色狐狸",
    "an ink picture of a yellow duck with a bow tie by the city",
    "海里有一条蓝色的鱼和一头难过的紫色鲸鱼",
    "a surprised orange fox with a scarf facing left in the snow",
    "草地上有一座红色的房子、一棵绿色的树和一辆蓝色的汽车",
    "a purple mouse with a hat and a teal turtle with glasses on the meadow",
    "天空中一只红色的鸟和一个蓝色的气球",
    "a white sheep with a crown in the mountains, paper-cut style",
    "蜡笔风格：沙漠里一只戴眼镜的绿色乌龟",
    "a cat, a dog, a rabbit and a frog on the meadow",
    "一只猫、一只狗、一只狐狸、一只熊、一只猪和一只青蛙在草地上",
    "a black cat with a hat facing left and a white dog facing right in the city",
    "海滩上一只开心的橙色猫和一只难过的蓝色狗",
    "a shadow puppet style lion with a scarf at night",
    "线描风格：房间里一只戴领结的企鹅",
    "draw a beach",
    "a small red mushroom on the left and a large pink flower on the right in the forest",
)


def run(*, seed: int = 0, size: int = 256, steps: int = 20, model: str | None = None, out: Path | None = None) -> Any:
    """Play the pages.

    Args:
        seed: of the pictures and individuals.
        size: side of the pictures.
        steps: of sampling.
        model: pipeline folder; the embedded one by default.
        out: folder for ``sheet.jpg``, the pages six in a row in the order of :data:`PAGES`.
    """
    stations = Stations(
        model=Path(model) if model else None,
        make_screenwriter=load_screenwriter,
        make_painter=lambda: load_painter(Path(model) if model else None),
        make_reader=load_detector,
    )
    pictures: list[npt.NDArray[np.uint8]] = []
    shares: dict[str, list[float]] = {"characters": [], "pages": [], "warned": [], "seconds": []}
    rows = []
    for number, message in enumerate(PAGES):
        reply = stations.screenwriter.read(message)
        started = time.perf_counter()
        done = perform(
            reply.page,
            Cast(),
            prompt=drawing_prompt(reply.page, reply.language),
            painter=stations.painter,
            reader=stations.reader,
            seed=stream_seed(seed, "pages", number) & MAX_PICTURE_SEED,
            config=PerformanceConfig(size=(size, size), steps=steps),
        )
        shares["seconds"].append(time.perf_counter() - started)
        assert done.reading is not None
        findings = find_characters(reply.page.back_to_front(), done.reading, Cast())
        extra = len(done.reading.characters) - sum(finding.seen is not None for finding in findings)
        shares["characters"] += [float(finding.all_right) for finding in findings]
        shares["pages"].append(float(extra == 0 and all(finding.all_right for finding in findings)))
        shares["warned"].append(float(bool(done.warnings)))
        rows.append({"message": message, "right": bool(shares["pages"][-1]), "attempts": len(done.attempts)})
        pictures.append(done.image)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        PillowImage.fromarray(contact_sheet(pictures)).save(out / "sheet.jpg", quality=88)
    return {**{name: bootstrap(values, seed, "pages", name) for name, values in shares.items()}, "rows": rows}


def contact_sheet(pictures: list[npt.NDArray[np.uint8]], columns: int = 6) -> npt.NDArray[np.uint8]:
    """Return pictures of one size in rows, uint8 (H, W, 3)."""
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    blank = np.full_like(pictures[0], 255)
    return np.concatenate([np.concatenate([*row, *[blank] * (columns - len(row))], 1) for row in rows], 0)
