"""Sequences of operations of bounded length, such as the skeletons of TransNAS-Bench-101's macro space.

Source: TransNAS-Bench-101 (Duan et al., CVPR 2021, arXiv:2105.11871) for :class:`TransNASMacro`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .base import SAMPLE_TRIES, Arch, Axis, SearchSpace
from .graphs import GraphBatch, one_hot

PAD = "pad"


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """A constraint: between ``low`` and ``high`` of a sequence's operations are among ``ops``."""

    ops: tuple[str, ...]
    low: int
    high: int


class SequenceSpace(SearchSpace):
    """All sequences of ``length[0]`` to ``length[1]`` operations that meet the counts.

    An architecture has ``length[1]`` positions: codes from 1 for the operations in order, then 0 as padding. Its graph
    is the chain input, operations, output; padding nodes are masked. Node features: one-hot over pad, the operations,
    input and output; then for each quantity in ``scale`` the log2 of its product so far, the input being 1.

    Args:
        ops: names of the operations.
        length: fewest and most operations.
        encode: the text form: ``{}`` once, for the names joined by ``separator``.
        separator: between the names; may be empty if all names are as long.
        counts: constraints.
        scale: quantity (channels, resolution, ...) to the positive factor each operation multiplies it by (default 1).
        name: for reports.

    Raises:
        ConfigError: for an impossible definition; messages start with the JSON pointer of the field.
    """

    def __init__(
        self,
        *,
        ops: Sequence[str],
        length: tuple[int, int],
        encode: str = "{}",
        separator: str = " ",
        counts: Sequence[Count] = (),
        scale: Mapping[str, Mapping[str, float]] | None = None,
        name: str = "sequence",
    ) -> None:
        self.name = name
        self.ops = tuple(ops)
        self.length = (int(length[0]), int(length[1]))
        self.template, self.separator = encode, separator
        self.counts = tuple(counts)
        self.scale = {quantity: dict(factors) for quantity, factors in (scale or {}).items()}
        self._check_definition()
        self.axes = tuple(Axis(name=f"op{place}", choices=(PAD, *self.ops)) for place in range(self.length[1]))
        if not self.size:
            raise ConfigError("/counts: no sequence meets them all", hint="widen min and max")

    def _check_definition(self) -> None:
        low, high = self.length
        if not 1 <= low <= high:
            raise ConfigError(f"/length: {list(self.length)}, expected 1 <= fewest <= most")
        for place, op in enumerate(self.ops):
            if not op or op == PAD or op in self.ops[:place]:
                raise ConfigError(f"/ops/{place}: {op!r} is empty, repeated or {PAD!r}")
            if self.separator and self.separator in op:
                raise ConfigError(f"/ops/{place}: {op!r} holds the separator {self.separator!r}")
        if not self.ops:
            raise ConfigError("/ops: expected at least one operation")
        if not self.separator and len({len(op) for op in self.ops}) > 1:
            raise ConfigError("/separator: empty, but the names differ in length", hint="give a separator")
        if self.template.count("{}") != 1:
            raise ConfigError(f"/encode: {self.template!r} does not hold {{}} once")
        for place, count in enumerate(self.counts):
            for op in count.ops:
                if op not in self.ops:
                    raise ConfigError(f"/counts/{place}/ops: {op!r} is none of {', '.join(self.ops)}")
            if not 0 <= count.low <= count.high:
                raise ConfigError(f"/counts/{place}: min {count.low}, max {count.high}, expected 0 <= min <= max")
        for quantity, factors in self.scale.items():
            for op, factor in factors.items():
                if op not in self.ops:
                    raise ConfigError(f"/scale/{quantity}: {op!r} is none of {', '.join(self.ops)}")
                if not (factor > 0 and math.isfinite(factor)):
                    raise ConfigError(f"/scale/{quantity}/{op}: {factor!r} is not a positive number")

    @cached_property
    def size(self) -> int:  # type: ignore[override]
        steps = [tuple(int(op in count.ops) for count in self.counts) for op in self.ops]
        states = {(0,) * len(self.counts): 1}
        total = 0
        for length in range(1, self.length[1] + 1):
            following: dict[tuple[int, ...], int] = {}
            for state, ways in states.items():
                for step in steps:
                    # A count beyond its limit never comes back, so such states are dropped.
                    new = tuple(have + more for have, more in zip(state, step, strict=True))
                    if all(have <= count.high for have, count in zip(new, self.counts, strict=True)):
                        following[new] = following.get(new, 0) + ways
            states = following
            if length >= self.length[0]:
                total += sum(
                    ways
                    for state, ways in states.items()
                    if all(have >= count.low for have, count in zip(state, self.counts, strict=True))
                )
        return total

    def format(self, arch: Arch) -> str:
        names = [self.ops[code - 1] for code in self.check(arch) if code]
        return self.template.replace("{}", self.separator.join(names))

    def parse(self, text: str) -> Arch:
        head, tail = self.template.split("{}")
        fits = isinstance(text, str) and text.startswith(head) and text.endswith(tail)
        if not fits or len(text) < len(head) + len(tail):
            raise DataError(
                f"{self.name}: {text!r} is not of the form {self.template}",
                hint=f"for example {self.format(next(self._walk()))}",
            )
        middle = text[len(head) : len(text) - len(tail)]
        width = len(self.ops[0])
        names = (
            middle.split(self.separator)
            if self.separator
            else [middle[start : start + width] for start in range(0, len(middle), width)]
        )
        for place, name in enumerate(names):
            if name not in self.ops:
                raise DataError(
                    f"{self.name}: position {place} of {text!r} is the unknown operation {name!r}",
                    hint=f"the operations are {', '.join(self.ops)}",
                )
        if not self.length[0] <= len(names) <= self.length[1]:
            raise DataError(
                f"{self.name}: {text!r} has {len(names)} operations, expected {self.length[0]} to {self.length[1]}"
            )
        codes = [self.ops.index(name) + 1 for name in names]
        return self.check((*codes, *[0] * (self.length[1] - len(codes))))

    def _problem(self, arch: Arch) -> str:
        """Return what is wrong with codes in range; empty if nothing."""
        used = [code for code in arch if code]
        if any(arch[len(used) :]):
            return f"holds padding before position {max(place for place, code in enumerate(arch) if code)}"
        if not self.length[0] <= len(used) <= self.length[1]:
            return f"has {len(used)} operations, expected {self.length[0]} to {self.length[1]}"
        for count in self.counts:
            have = sum(self.ops[code - 1] in count.ops for code in used)
            if not count.low <= have <= count.high:
                return f"has {have} of {{{', '.join(count.ops)}}}, expected {count.low} to {count.high}"
        return ""

    def _constrain(self, arch: Arch) -> Arch:
        if problem := self._problem(arch):
            raise DataError(f"{self.name}: {arch} {problem}", hint="codes are 1, 2, ... and 0 for padding at the end")
        return arch

    def _walk(self) -> Iterator[Arch]:
        most = self.length[1]

        def extend(prefix: tuple[int, ...]) -> Iterator[Arch]:
            padded = (*prefix, *[0] * (most - len(prefix)))
            if len(prefix) >= self.length[0] and not self._problem(padded):
                yield padded
            if len(prefix) < most:
                for code in range(1, len(self.ops) + 1):
                    longer = (*prefix, code)
                    over = any(sum(self.ops[c - 1] in count.ops for c in longer) > count.high for count in self.counts)
                    if not over:
                        yield from extend(longer)

        return extend(())

    def sample(self, rng: np.random.Generator) -> Arch:
        low, high = self.length
        weights = np.array([float(len(self.ops)) ** (length - high) for length in range(low, high + 1)])
        for _ in range(SAMPLE_TRIES):
            length = low + int(rng.choice(len(weights), p=weights / weights.sum()))
            codes = [int(code) for code in rng.integers(1, len(self.ops) + 1, size=length)]
            arch = (*codes, *[0] * (high - length))
            if not self._problem(arch):
                return arch
        raise ConfigError(f"{self.name}: none of {SAMPLE_TRIES} draws meets the counts", hint="widen min and max")

    def mutate(self, arch: Arch, rng: np.random.Generator) -> Arch:
        """Return a neighbour: an operation replaced, inserted or removed."""
        used = [code for code in self.check(arch) if code]
        codes = range(1, len(self.ops) + 1)
        moves = [[*used[:i], code, *used[i + 1 :]] for i in range(len(used)) for code in codes if code != used[i]]
        moves += [[*used[:i], code, *used[i:]] for i in range(len(used) + 1) for code in codes]
        moves += [[*used[:i], *used[i + 1 :]] for i in range(len(used))]
        for place in rng.permutation(len(moves)):
            move = moves[int(place)]
            if len(move) <= self.length[1]:
                changed = (*move, *[0] * (self.length[1] - len(move)))
                if not self._problem(changed):
                    return changed
        raise ConfigError(f"{self.name}: {arch} has no neighbour", hint="widen the counts or the length")

    def encode(self, archs: Sequence[Arch], *, extra: np.ndarray | Tensor | None = None) -> GraphBatch:
        codes = self._codes(archs)
        count, most, ops = len(codes), self.length[1], len(self.ops)
        size = most + 2
        labels = np.empty((count, size), dtype=np.int64)
        labels[:, 0], labels[:, 1:-1], labels[:, -1] = ops + 1, codes, ops + 2
        used = (codes > 0).sum(axis=1)
        mask = np.ones((count, size), dtype=bool)
        mask[:, 1:-1] = codes > 0
        adjacency = np.zeros((count, size, size), dtype=np.float32)
        rows = np.arange(count)
        for place in range(most):
            adjacency[place < used, place, place + 1] = 1
        adjacency[rows, used, size - 1] = 1
        features = [one_hot(labels, ops + 3)]
        for factors in self.scale.values():
            steps = np.log2(np.array([1.0, *(factors.get(op, 1.0) for op in self.ops)]))[codes]
            reached = np.cumsum(steps, axis=1)
            track = np.concatenate([np.zeros((count, 1)), np.where(codes > 0, reached, 0), reached[:, -1:]], axis=1)
            features.append(track[:, :, None].astype(np.float32))
        batch = GraphBatch(
            nodes=torch.from_numpy(np.concatenate(features, axis=2)),
            adjacency=torch.from_numpy(adjacency),
            mask=torch.from_numpy(mask),
            output=size - 1,
            extra=torch.zeros(count, 0),
        )
        return batch if extra is None else batch.with_extra(extra)

    def definition(self) -> dict[str, Any]:
        return {
            "version": 1,
            "type": "sequence",
            "name": self.name,
            "ops": list(self.ops),
            "length": list(self.length),
            "encode": self.template,
            "separator": self.separator,
            "counts": [{"ops": list(c.ops), "min": c.low, "max": c.high} for c in self.counts],
            "scale": self.scale,
        }


class TransNASMacro(SequenceSpace):
    """The 3,256 skeletons of TransNAS-Bench-101, written ``64-D1...Dk-basic`` with 4 to 6 modules.

    Each module is two ResNet basic blocks that keep everything (1), double the channels (2), halve the resolution (3)
    or both (4); 1 to 3 modules double and 1 to 4 halve. The two scalars of a node are log2 of channels and resolution
    after the module, relative to the stem's 64 channels and 64x64 positions.
    """

    def __init__(self) -> None:
        super().__init__(
            ops=("1", "2", "3", "4"),
            length=(4, 6),
            encode="64-{}-basic",
            separator="",
            counts=(Count(ops=("2", "4"), low=1, high=3), Count(ops=("3", "4"), low=1, high=4)),
            scale={"channels": {"2": 2.0, "4": 2.0}, "resolution": {"3": 0.5, "4": 0.5}},
            name="transnas-macro",
        )
