"""Small changes of a picture between steps, and the strong ones that self-supervised terms compare.

An augmentation is any ``(image, rng) -> image`` on uint8 (h, w, 3); the shape stays.

Source: Chen et al. 2020 (arXiv:2002.05709), appendix A, for :func:`strong_view`, as SLIP (Mu et al. 2021,
arXiv:2112.12750) uses it.
Differs: no blur, and no hue: at 64 pixels both remove what tells pictures apart.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError

Image = NDArray[np.uint8]
Augment = Callable[[Image, np.random.Generator], Image]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def shifted(image: Image, rng: np.random.Generator, share: float = 0.06) -> Image:
    """Return the picture moved by up to ``share`` of its sides; its edge pixels fill the gap."""
    height, width = image.shape[:2]
    down, right = max(1, round(height * share)), max(1, round(width * share))
    y, x = int(rng.integers(-down, down + 1)), int(rng.integers(-right, right + 1))
    rows = np.clip(np.arange(height) + y, 0, height - 1)
    columns = np.clip(np.arange(width) + x, 0, width - 1)
    return image[rows[:, None], columns[None, :]]


def cropped(image: Image, rng: np.random.Generator, smallest: float = 0.8) -> Image:
    """Return a random part of ``smallest`` to all of the area, at the old size; never mirrored."""
    from PIL import Image as Pillow

    height, width = image.shape[:2]
    area = rng.uniform(smallest, 1.0)
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    part_width = min(width, max(1, round(width * np.sqrt(area * ratio))))
    part_height = min(height, max(1, round(height * np.sqrt(area / ratio))))
    left, top = rng.integers(0, width - part_width + 1), rng.integers(0, height - part_height + 1)
    box = (int(left), int(top), int(left + part_width), int(top + part_height))
    picture = Pillow.fromarray(image).resize((width, height), Pillow.Resampling.BILINEAR, box=box)
    return np.asarray(picture)


def strong_view(image: Image, rng: np.random.Generator) -> Image:
    """Return a view for SimCLR's loss: a part of half the area or more, maybe mirrored, recoloured, maybe grey."""
    view = cropped(image, rng, 0.5)
    if rng.random() < 0.5:
        view = view[:, ::-1]
    values = view.astype(np.float32)
    if rng.random() < 0.8:
        bright, contrast, colour = rng.uniform(0.6, 1.4, 3).astype(np.float32)
        values *= bright
        mean = values.mean()
        values = (values - mean) * contrast + mean
        grey = (values @ LUMA)[..., None]
        values = (values - grey) * colour + grey
    if rng.random() < 0.2:
        values = np.repeat((values @ LUMA)[..., None], 3, axis=2)
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


AUGMENTS: dict[str, Augment | None] = {"none": None, "shift": shifted, "crop": cropped}
"""By name, mildest first; none of them mirrors, as captions say where things are."""


def named_augment(name: str) -> Augment | None:
    """Return an augmentation by its name.

    Raises:
        ConfigError: for an unknown one.
    """
    if name not in AUGMENTS:
        raise ConfigError(f"no augmentation is called {name!r}", hint=f"use one of {', '.join(AUGMENTS)}")
    return AUGMENTS[name]
