"""Latents computed ahead for the painter: shards of scenes with references, kept on disk between runs.

A shard is a pure function of its number and of the autoencoder: latents of fresh scenes, the boxes and looks of their
characters, and for each character latents of a crop of the same individual from *another* picture (other pose, place,
background, expression, often other accessory, sometimes other colour), so that a model cannot learn only to copy.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save
from torch import Tensor

from ..diffusion.autoencoder import Autoencoder
from ..diffusion.pipeline import compose_canvas, resized
from ..painting import CROP_MARGIN
from ..pretrained import WEIGHTS_NAME, write_atomic
from ..rng import numpy_stream
from ..theater.cast import cut_out
from ..world.render import render
from ..world.sample import rebox, sample_look, sample_scene
from ..world.scene import TRAINED_CHARACTERS, SceneCharacter, SceneGraph
from ..world.vocabulary import INDEX, KEYS
from .autoencoder import to_tensor

SHARD_SIZE = 1000
REFERENCE_PX = 64
LOOKS = ("species", "colour", "accessory", "expression", "facing")
SIZES: tuple[tuple[int, int], ...] = ((256, 256), (128, 128), (192, 320), (320, 192))
"""Picture sizes (height, width) in pixels: about 256 tokens, and 64 for the small one."""
SIZE_CYCLE: tuple[int, ...] = (0, 0, 1, 0, 2, 0, 0, 3)
"""Which of :data:`SIZES` shard k has, by k modulo the length: most have the size that is painted by default."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Scenes of one size.

    Attributes:
        size: (height, width) in pixels.
        latents: (n, C, h, w) fp16, scaled.
        references: (n, 3, C, 8, 8) fp16.
        canvas: (n, C, h, w) fp16, of all references pasted into their boxes.
        boxes: (n, 3, 4) fp32.
        looks: (n, 3, 5) int16 indices of :data:`LOOKS`.
        counts: (n,) characters.
        places: (n, 2) int16 indices of background and style.
    """

    size: tuple[int, int]
    latents: Tensor
    references: Tensor
    canvas: Tensor
    boxes: Tensor
    looks: np.ndarray
    counts: np.ndarray
    places: np.ndarray

    def scene(self, i: int) -> SceneGraph:
        """Return scene ``i``, all but its individuals, which no caption mentions."""
        characters = tuple(
            SceneCharacter(
                **{name: KEYS[name][self.looks[i, k, j]] for j, name in enumerate(LOOKS)},
                box=box_of(self.boxes[i, k]),
            )
            for k in range(self.counts[i])
        )
        return SceneGraph(
            background=KEYS["background"][self.places[i, 0]],
            style=KEYS["style"][self.places[i, 1]],
            characters=characters,
        )


def box_of(values: Tensor) -> tuple[float, float, float, float]:
    """Return four numbers as a box."""
    x0, y0, x1, y1 = (float(v) for v in values)
    return x0, y0, x1, y1


def reference_tensor(crop: np.ndarray) -> Tensor:
    """Return a crop uint8 (h, w, 3) as (3, 64, 64) in [-1, 1], stretched."""
    return to_tensor(resized(crop, (REFERENCE_PX, REFERENCE_PX))[None])[0]


def other_picture(character: SceneCharacter, style: str, rng: np.random.Generator) -> np.ndarray:
    """Return a crop of the same individual from another picture, facing the same way."""
    look = sample_look(rng)
    changes = {"expression": look["expression"]}
    if rng.random() < 0.4:
        changes["accessory"] = look["accessory"]
    if rng.random() < 0.08:
        changes["colour"] = look["colour"]
    height = 0.26 + 0.28 * rng.random()
    x, y = 0.02 + rng.random() * (0.96 - height), 0.03 + rng.random() * (0.94 - height)
    there = rebox(character.replace(**changes), (x, y, x + height, y + height))
    scene = SceneGraph(
        background=KEYS["background"][rng.integers(len(KEYS["background"]))],
        style=style if rng.random() < 0.75 else KEYS["style"][rng.integers(len(KEYS["style"]))],
        characters=(there,),
        backdrop=int(rng.integers(64)),
    )
    image = render(scene, 256).image
    box = box_of(torch.tensor([np.clip(v + 0.008 * rng.standard_normal(), 0, 1) for v in there.box]))
    return cut_out(image, box, None, CROP_MARGIN * (0.7 + 0.6 * rng.random()))[0]


@torch.inference_mode()
def make_shard(seed: int, number: int, autoencoder: Autoencoder, count: int = SHARD_SIZE) -> Shard:
    """Draw and encode one shard."""
    rng = numpy_stream(seed, "painter-data", number)
    size = SIZES[SIZE_CYCLE[number % len(SIZE_CYCLE)]]
    k = TRAINED_CHARACTERS
    scenes = [sample_scene(rng, aspect=size[1] / size[0]) for _ in range(count)]
    boxes, looks = np.zeros((count, k, 4), np.float32), np.zeros((count, k, len(LOOKS)), np.int16)
    boxes[..., 2:] = 1
    places = np.array([(INDEX["background"][s.background], INDEX["style"][s.style]) for s in scenes], np.int16)
    side = REFERENCE_PX // autoencoder.factor
    channels = autoencoder.config.latent_channels
    references = torch.zeros(count, k, channels, side, side, dtype=torch.float16)
    latents, canvases = [], []
    for start in range(0, count, 20):
        part = scenes[start : start + 20]
        drawn = [render(scene, size) for scene in part]
        latents.append(autoencoder.encode_latents(to_tensor(np.stack([d.image for d in drawn]))).half())
        crops, where, canvas = [], [], []
        for i, (scene, picture) in enumerate(zip(part, drawn, strict=True), start=start):
            others = [other_picture(character, scene.style, rng) for character in scene.characters]
            canvas.append(compose_canvas(size, others, picture.boxes.tolist()))
            for j, character in enumerate(scene.characters):
                boxes[i, j] = picture.boxes[j]
                looks[i, j] = [INDEX[name][getattr(character, name)] for name in LOOKS]
                crops.append(reference_tensor(others[j]))
                where.append((i, j))
        canvases.append(autoencoder.encode_latents(to_tensor(np.stack(canvas))).half())
        if crops:
            encoded = autoencoder.encode_latents(torch.stack(crops)).half()
            for (i, j), latent in zip(where, encoded, strict=True):
                references[i, j] = latent
    counts = np.array([len(s.characters) for s in scenes], np.int16)
    return Shard(
        size, torch.cat(latents), references, torch.cat(canvases), torch.from_numpy(boxes), looks, counts, places
    )


def autoencoder_key(folder: str | Path) -> str:
    """Return a short hash of an autoencoder's weights: shards of another one are never mixed in."""
    return hashlib.sha256((Path(folder) / WEIGHTS_NAME).read_bytes()).hexdigest()[:12]


def shard_path(cache: Path, folder: str | Path, seed: int, number: int) -> Path:
    return Path(cache) / f"{autoencoder_key(folder)}-{seed}" / f"{number:05d}.safetensors"


def load_shard(path: Path) -> Shard:
    """Read a shard."""
    arrays = load_file(path)
    size = tuple(int(v) for v in arrays["size"])
    return Shard(
        (size[0], size[1]),
        torch.from_numpy(arrays["latents"]),
        torch.from_numpy(arrays["references"]),
        torch.from_numpy(arrays["canvas"]),
        torch.from_numpy(arrays["boxes"]),
        arrays["looks"],
        arrays["counts"],
        arrays["places"],
    )


def save_shard(shard: Shard, path: Path) -> None:
    """Write a shard, whole or not at all."""
    arrays = {
        "size": np.array(shard.size),
        "latents": shard.latents.numpy(),
        "references": shard.references.numpy(),
        "canvas": shard.canvas.numpy(),
        "boxes": shard.boxes.numpy(),
        "looks": shard.looks,
        "counts": shard.counts,
        "places": shard.places,
    }
    write_atomic(path, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def _work(task: tuple[int, str, list[int], str]) -> int:
    seed, folder, numbers, cache = task
    torch.set_num_threads(1)
    autoencoder = Autoencoder.from_pretrained(folder)
    for number in numbers:
        path = shard_path(Path(cache), folder, seed, number)
        if not path.is_file():
            save_shard(make_shard(seed, number, autoencoder), path)
    return len(numbers)


def ensure_shards(cache: str | Path, folder: str | Path, seed: int, count: int, workers: int = 2) -> list[Path]:
    """Make the shards that are not there yet, in parallel, and return the paths of all of them."""
    paths = [shard_path(Path(cache), folder, seed, number) for number in range(count)]
    missing = [number for number, path in enumerate(paths) if not path.is_file()]
    if missing:
        print(f"painter: computing {len(missing)} of {count} shards of latents in {cache}", file=sys.stderr)  # noqa: T201
        tasks = [(seed, str(folder), missing[w::workers], str(cache)) for w in range(workers)]
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for _ in pool.imap_unordered(_work, tasks):
                pass
    return paths
