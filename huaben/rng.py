"""Named seed streams: one user seed, one independent stream per purpose.

A stream is named by its purpose (``"noise"``, ``"layout"``, ...), so adding a consumer never shifts the numbers
another one draws. Noise is always drawn on the CPU and then moved: a seed means one picture on every device.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from .errors import ConfigError

if TYPE_CHECKING:
    import torch

MAX_SEED = 2**63 - 1


def check_seed(seed: int) -> int:
    """Return ``seed`` if it is an integer in ``[0, 2**63)``.

    Raises:
        ConfigError: for any other value.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed={seed!r} is not an integer from 0 to 2**63-1", hint="use a seed such as 7")
    return seed


def stream_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed that depends on ``seed`` and on every name, in order."""
    text = "\x1f".join([str(check_seed(seed)), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") & MAX_SEED


def numpy_stream(seed: int, *names: str | int) -> np.random.Generator:
    """Return numpy's generator for one named stream."""
    return np.random.Generator(np.random.PCG64(stream_seed(seed, *names)))


def torch_stream(seed: int, *names: str | int) -> torch.Generator:
    """Return a CPU torch generator for one named stream."""
    import torch

    generator = torch.Generator(device="cpu")
    generator.manual_seed(stream_seed(seed, *names))
    return generator
