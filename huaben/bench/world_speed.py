"""Scenes a second on one core: how fast the embedded world can be sampled and drawn. No torch is loaded.

Every scene is new: nothing drawn before is drawn again, only backdrops and gradients come from the renderer's own
memory, as in training. Where other programs share the core, wall time says what they left; ``per_cpu_second`` counts
this process's own time alone and is the number to compare.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..rng import numpy_stream
from ..world.render import check_size, render
from ..world.sample import sample_scene
from ..world.scene import SceneGraph

BATCH = 32
"""Scenes between two looks at the clock."""
REPEATS = 5

Clock = Callable[[], float]


def run(seconds: float = 5.0, size: int = 128, seed: int = 1, *, repeats: int = REPEATS) -> dict[str, Any]:
    """Measure drawing, drawing with masks, sampling, and sampling and drawing together, in turns.

    Args:
        seconds: timed for each of the four, over all repeats.
        size: side of the pictures.
        seed: of the scenes.
        repeats: measurements of each, taken in turns.

    Returns:
        ``scenes``: measure -> ``per_second`` (wall) and ``per_cpu_second``, each mean, standard deviation, lowest and
        highest repeat, and number of repeats; and the settings.

    Raises:
        ConfigError: for no time or no repeats.
        ShapeError: for an impossible size.
    """
    if seconds <= 0 or repeats < 1:
        raise ConfigError(f"seconds={seconds} and repeats={repeats}, expected both above 0", hint="use 5 and 5")
    check_size(size)
    work: dict[str, tuple[bool, Callable[[Any], object]]] = {
        "render": (True, lambda scene: render(scene, size)),
        "render_with_masks": (True, lambda scene: render(scene, size, masks=True)),
        "sample": (False, sample_scene),
        "sample_and_render": (False, lambda rng: render(sample_scene(rng), size)),
    }
    for name, (ahead, step) in work.items():
        _rate(step, _items(ahead, seed, name, "warm up"), 0.0)
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for repeat in range(repeats):
        for name, (ahead, step) in work.items():
            rates[name].append(_rate(step, _items(ahead, seed, name, repeat), seconds / repeats))
    return {
        "scenes": {
            name: {
                "per_second": spread([wall for wall, _ in pairs]),
                "per_cpu_second": spread([cpu for _, cpu in pairs]),
            }
            for name, pairs in rates.items()
        },
        "size": size,
        "seconds": seconds,
        "repeats": repeats,
        "seed": seed,
    }


def spread(values: list[float], digits: int = 1) -> dict[str, Any]:
    """Return mean, standard deviation, lowest, highest and number of some measurements."""
    array = np.asarray(values, dtype=np.float64)
    return {
        "mean": round(float(array.mean()), digits),
        "std": round(float(array.std(ddof=1)), digits) if array.size > 1 else 0.0,
        "low": round(float(array.min()), digits),
        "high": round(float(array.max()), digits),
        "n": int(array.size),
    }


def _items(ahead: bool, seed: int, *names: str | int) -> Iterator[list[SceneGraph] | list[np.random.Generator]]:
    """Yield batches of scenes that were sampled ahead, or of the random stream they would be sampled from."""
    rng = numpy_stream(seed, "world speed", *names)
    while True:
        yield [sample_scene(rng) for _ in range(BATCH)] if ahead else [rng] * BATCH


def _rate(
    step: Callable[[Any], object], batches: Iterator[list[SceneGraph] | list[np.random.Generator]], seconds: float
) -> tuple[float, float]:
    """Return steps a second, by the wall's clock and by the process's own; at least one batch is timed."""
    clocks: tuple[Clock, Clock] = (time.perf_counter, time.process_time)
    spent, count = [0.0, 0.0], 0
    for batch in batches:
        before = [clock() for clock in clocks]
        for item in batch:
            step(item)
        for index, clock in enumerate(clocks):
            spent[index] += clock() - before[index]
        count += len(batch)
        if spent[0] >= seconds:
            break
    wall, cpu = (count / max(value, 1e-9) for value in spent)
    return wall, cpu
