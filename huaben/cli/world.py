"""``huaben world render`` and ``huaben world read``: pictures of the embedded world, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ShapeError, UsageError
from .main import print_json
from .sizes import parse_size
from .texts import tell
from .words import say

app = typer.Typer(help=say("world"), no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.command("render", help=tell("world_render"))
def render_pictures(
    out: Annotated[Path, typer.Option(help=tell("world_out"))],
    seed: Annotated[int, typer.Option(help=tell("world_seed"))] = 0,
    count: Annotated[int, typer.Option(help=tell("world_count"))] = 16,
    size: Annotated[str, typer.Option(metavar="HxW", help=tell("size"))] = "256x256",
    as_json: Annotated[bool, typer.Option("--json", help=say("json"))] = False,
) -> None:
    """Write random pictures, and one line a picture into scenes.jsonl."""
    from ..files import write_bytes
    from ..pictures import write_picture
    from ..rng import check_seed, numpy_stream
    from ..world.captions import caption
    from ..world.render import check_size, render
    from ..world.sample import sample_scene

    check_seed(seed)
    height_width = parse_size(size)
    try:
        check_size(height_width)
    except ShapeError as error:
        raise UsageError(error.message, hint=error.hint) from error
    if count < 1:
        raise UsageError(f"--count {count} is less than 1", hint="use --count 16")
    lines: list[str] = []
    for number in range(count):
        rng = numpy_stream(seed, "world", number)
        scene = sample_scene(rng)
        captions = {language: caption(scene, rng, language, "train").text for language in ("en", "zh")}
        rendered = render(scene, height_width)
        name = f"{number:05d}.png"
        write_picture(out / name, rendered.image)
        record = {
            "image": name,
            "captions": captions,
            "scene": scene.to_dict(),
            "boxes": [[round(float(v), 4) for v in box] for box in rendered.boxes],
        }
        lines.append(json.dumps(record, ensure_ascii=False, sort_keys=True))
    write_bytes(out / "scenes.jsonl", ("\n".join(lines) + "\n").encode("utf-8"))
    if as_json:
        print_json({"folder": str(out), "count": count, "seed": seed, "scenes": str(out / "scenes.jsonl")})
    else:
        typer.echo(tell("world_rendered", count=count, folder=out), err=True)


@app.command("read", help=tell("world_read"))
def read_pictures(
    images: Annotated[list[Path], typer.Argument(help=tell("world_images"))],
    model: Annotated[Path | None, typer.Option(help=tell("draw_model"))] = None,
    as_json: Annotated[bool, typer.Option("--json", help=say("json"))] = False,
) -> None:
    """Say what the detector sees in each picture."""
    from ..pictures import read_picture
    from ..stations import load_detector

    pixels = [read_picture(path, max_side=512) for path in images]
    detector = load_detector(model)
    readings = [detector.detect([picture])[0] for picture in pixels]
    records: list[dict[str, Any]] = [
        {"image": str(path), **reading.to_dict()} for path, reading in zip(images, readings, strict=True)
    ]
    if as_json:
        print_json({"images": records})
        return
    for record in records:
        who = ", ".join(f"{c['colour']} {c['species']} {c['box']} ({c['score']:.2f})" for c in record["characters"])
        typer.echo(f"{record['image']}: {record['background']}, {record['style']}: {who or '-'}")
