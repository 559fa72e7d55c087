"""What happens to a picture on its way: blur, noise, compression, loss of resolution.

The detector is trained to see through these and is scored under them. All take and return uint8 ``(H, W, 3)``.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur with a Gaussian of standard deviation ``sigma`` pixels."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def add_noise(image: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise of standard deviation ``std``, where black is 0 and white is 1."""
    noise = rng.standard_normal(image.shape, dtype=np.float32) * (255 * std)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    """Write and read as JPEG of the given quality, from 1 to 95."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as picture:
        return np.asarray(picture.convert("RGB"))


def lose_resolution(image: np.ndarray, share: float) -> np.ndarray:
    """Shrink to ``share`` of each side and grow back."""
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize(
        (max(1, round(width * share)), max(1, round(height * share))), Image.Resampling.BOX
    )
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))


def random_distortion(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the picture clean (nearly half of the time) or distorted, mildly more often than badly."""
    kind, strength, more = rng.random(), rng.random(), rng.random()
    if kind < 0.45:
        return image
    if kind < 0.68:
        image = blur(image, 0.4 + 1.7 * strength * strength)
    elif kind < 0.75:
        image = compress(image, int(15 + 60 * strength))
    elif kind < 0.85:
        image = lose_resolution(image, 0.4 + 0.5 * strength)
    if kind >= 0.85 or more < 0.25:
        image = add_noise(image, 0.01 + 0.1 * more if kind >= 0.85 else 0.2 * more, rng)
    return image
