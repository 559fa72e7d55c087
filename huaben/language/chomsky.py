"""The fifteen tasks of "Neural Networks and the Chomsky Hierarchy": can a model go on past the lengths it was trained on?

Every task maps a string of ``n`` symbols to an answer of ``task.output_length(n)`` symbols. A generator draws a whole
batch of one length at once, and the same random stream always gives the same batch::

    batch = TASKS["reverse_string"].sample(numpy_stream(0, "demo"), batch=4, length=7)
    batch.inputs, batch.targets, batch.mask        # (4, 7), (4, 7), (4, 7)

Letters: B batch, n input length, y output length. Arithmetic has its own file, :mod:`.chomsky_arithmetic`.

Source: Delétang et al. 2023 (arXiv:2207.02098), section 4 and appendix A; the tasks DAPE is measured on (arXiv:2405.14722).
Differs: a length that a task cannot fill is refused. The reference code answers it with a constant (missing duplicate at
1, solve equation, binary addition and multiplication below 3) or shortens it (modular arithmetic at even lengths).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..rng import numpy_stream
from .chomsky_arithmetic import (
    MODULUS,
    binary_addition,
    binary_multiplication,
    compute_sqrt,
    modular_arithmetic,
    modular_arithmetic_brackets,
    solve_equation,
)

Symbols = npt.NDArray[np.int64]
Generate = Callable[[np.random.Generator, int, int], tuple[Symbols, Symbols]]
"""(random stream, B, n) -> inputs (B, n) and targets (B, y)."""
Level = Literal["regular", "context_free", "context_sensitive"]


@dataclass(frozen=True, slots=True)
class TaskBatch:
    """Strings of one length and their answers.

    Attributes:
        inputs: (B, n) int64 in ``[0, task.input_size)``.
        targets: (B, y) int64 in ``[0, task.output_size)``.
        mask: (B, y) bool, True where a symbol counts for accuracy: everywhere, or up to and including the terminator.
    """

    inputs: Symbols
    targets: Symbols
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One task.

    Attributes:
        name: its key in :data:`TASKS`.
        level: of the Chomsky hierarchy; "context_free" means deterministic context-free.
        symbols: how each input symbol is written, one character each.
        output_size: number of different output symbols.
        generate: draws inputs and targets.
        output_length: n -> y.
        chance: accuracy of a uniform guess, as published tables quote it; :func:`constant_accuracy` measures what can
            really be had for nothing, which is more for a few tasks.
        shortest: least n.
        odd: whether n must be odd.
        terminated: whether the last output symbol ends an answer, after which zeros are padding.
        order_free: whether every permutation of the input has the same answer: no positions are needed.
    """

    name: str
    level: Level
    symbols: str
    output_size: int
    generate: Generate
    output_length: Callable[[int], int]
    chance: float
    shortest: int = 1
    odd: bool = False
    terminated: bool = False
    order_free: bool = False

    @property
    def input_size(self) -> int:
        """Number of different input symbols."""
        return len(self.symbols)

    def allows(self, length: int) -> bool:
        """Return whether there are strings of this length."""
        return length >= self.shortest and (length % 2 == 1 or not self.odd)

    def lengths(self, low: int, high: int) -> list[int]:
        """Return the lengths from ``low`` to ``high``, both included, that the task has strings of.

        Raises:
            ConfigError: if there is none.
        """
        found = [length for length in range(low, high + 1) if self.allows(length)]
        if not found:
            raise ConfigError(f"{self.name} has no string of {low} to {high} symbols", hint=self._allowed())
        return found

    def sample(self, rng: np.random.Generator, batch: int, length: int) -> TaskBatch:
        """Draw ``batch`` strings of ``length`` symbols and their answers.

        Raises:
            ConfigError: for an impossible length or batch size.
        """
        if not self.allows(length):
            raise ConfigError(f"{self.name} has no string of {length} symbols", hint=self._allowed())
        if batch < 1:
            raise ConfigError(f"batch={batch}, expected at least 1", hint="draw 1 string or more")
        inputs, targets = self.generate(rng, batch, length)
        return TaskBatch(inputs, targets, self.answer_mask(targets))

    def answer_mask(self, targets: Symbols) -> npt.NDArray[np.bool_]:
        """Return (B, y) bool: which symbols of the targets count for accuracy."""
        if not self.terminated:
            return np.ones(targets.shape, dtype=np.bool_)
        end = (targets == self.output_size - 1).argmax(axis=1)
        return np.arange(targets.shape[1]) <= end[:, None]

    def write(self, inputs: Symbols) -> str:
        """Return one string (n,) as text, e.g. ``"1+2*3"``."""
        return "".join(self.symbols[symbol] for symbol in inputs)

    def _allowed(self) -> str:
        return f"use {'odd ' if self.odd else ''}lengths from {self.shortest}"


def find_task(name: str) -> Task:
    """Return a task of :data:`TASKS`.

    Raises:
        ConfigError: for an unknown name, with the nearest known one.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(TASKS)}"
        raise ConfigError(f"there is no task {name!r}", hint=hint)
    return TASKS[name]


def training_batch(task: Task, seed: int, step: int, *, batch: int, longest: int) -> TaskBatch:
    """Return the batch of one training step: its length is uniform on the task's lengths from 1 to ``longest``."""
    rng = numpy_stream(seed, "chomsky", task.name, "train", step)
    lengths = task.lengths(1, longest)
    return task.sample(rng, batch, lengths[int(rng.integers(len(lengths)))])


def held_out_batch(task: Task, length: int, *, batch: int, seed: int = 1) -> TaskBatch:
    """Return the test strings of one length: the same for every model, and never those of a training step."""
    return task.sample(numpy_stream(seed, "chomsky", task.name, "test", length), batch, length)


def constant_accuracy(task: Task, lengths: Iterable[int], *, batch: int = 512, seed: int = 1) -> dict[str, float]:
    """Return what can be scored without reading the input, as mean accuracy over ``lengths``.

    ``constant`` always says the one symbol that is best over all test strings; ``by_position`` says, for each length
    and output position, the symbol most frequent there in as many other strings. The second is the harder one to beat
    where positions tell something: a sorted string begins with zeros. Bracketed expressions have more zeros than other
    values, because products do: their share of zeros tends to a third.
    """
    hits = np.zeros(task.output_size)
    positional = []
    lengths = list(lengths)
    for length in lengths:
        test = held_out_batch(task, length, batch=batch, seed=seed)
        other = task.sample(numpy_stream(seed, "chomsky", task.name, "guess", length), batch, length)
        symbols = np.arange(task.output_size)[:, None, None]
        counts = ((other.targets == symbols) & other.mask).sum(1)  # (symbols, y)
        right = (test.targets == counts.argmax(0)) & test.mask
        positional.append(right.sum() / test.mask.sum())
        hits += ((test.targets == symbols) & test.mask).sum((1, 2)) / test.mask.sum()
    return {"constant": float(hits.max() / len(lengths)), "by_position": float(np.mean(positional))}


# -------------------------------------------------------------------------------------------------------------- strings


def _even_pairs(rng: np.random.Generator, batch: int, length: int) -> tuple[Symbols, Symbols]:
    """Is the number of unequal neighbours odd? (That is: do the first and the last symbol differ?)"""
    strings = rng.integers(2, size=(batch, length))
    return strings, (strings[:, :-1] != strings[:, 1:]).sum(1, keepdims=True) % 2


def _parity_check(rng: np.random.Generator, batch: int, length: int) -> tuple[Symbols, Symbols]:
    """Is the number of ones odd?"""
    strings = rng.integers(2, size=(batch, length))
    return strings, strings.sum(1, keepdims=True) % 2


def _cycle_navigation(rng: np.random.Generator, batch: int, length: int) -> tuple[Symbols, Symbols]:
    """Steps of -1, 0, +1, written 0, 1, 2, on a circle of five places: where do they end?"""
    moves = rng.integers(3, size=(batch, length))
    return moves, (moves - 1).sum(1, keepdims=True) % MODULUS


def _stack_manipulation(rng: np.random.Generator, batch: int, length: int) -> tuple[Symbols, Symbols]:
    """A stack from bottom to top, then pop (2), push 0 (3) and push 1 (4): the final stack from its top, and 2."""
    bottom = rng.integers(1, max(length, 2), size=(batch, 1))
    strings = np.where(
        np.arange(length) < bottom, rng.integers(2, size=(batch, length)), rng.integers(2, 5, size=(batch, length))
    )
    stack = np.zeros((batch, length), dtype=np.int64)
    height = np.zeros(batch, dtype=np.int64)
    rows = np.arange(batch)
    for column in strings.T:
        push = column != 2
        stack[rows[push], height[push]] = np.where(column < 2, column, column - 3)[push]
        height = np.where(push, height + 1, np.maximum(height - 1, 0))
    places = np.arange(length + 1)
    below_top = height[:, None] - 1 - places
    answer = np.take_along_axis(stack, below_top.clip(0), axis=1)
    return strings, np.where(below_top >= 0, answer, np.where(below_top == -1, 2, 0))


def _reverse_string(rng: np.random.Generator, batch: int, length: int) -> tuple[Symbols, Symbols]:
    """The string from its end."""
    strings = rng.integers(2, size=(batch, length))
    return strings, strings[:, ::-1].copy()


def _duplicate_string(rng: np.random.Generator, batch: int, length: int) -> tuple[Symbols, Symbols]:
    """The string twice."""
    strings = rng.integers(2, size=(batch, length))
    return strings, np.concatenate([strings, strings], axis=1)


def _missing_duplicate(rng: np.random.Generator, batch: int, length: int) -> tuple[Symbols, Symbols]:
    """A string twice with one symbol hidden by a 2: which one? A 3 fills an odd length."""
    half = length // 2
    word = rng.integers(2, size=(batch, half))
    strings = np.concatenate([word, word, np.full((batch, length % 2), 3)], axis=1)
    place = rng.integers(2 * half, size=(batch, 1))
    hidden = np.take_along_axis(strings, place, axis=1)
    np.put_along_axis(strings, place, 2, axis=1)
    return strings, hidden


def _odds_first(rng: np.random.Generator, batch: int, length: int) -> tuple[Symbols, Symbols]:
    """Symbols 1, 3, 5, … and then 0, 2, 4, …, counted from 0 as the reference code does (its text counts from 1)."""
    strings = rng.integers(2, size=(batch, length))
    return strings, np.concatenate([strings[:, 1::2], strings[:, ::2]], axis=1)


def _bucket_sort(rng: np.random.Generator, batch: int, length: int) -> tuple[Symbols, Symbols]:
    """The symbols in ascending order."""
    strings = rng.integers(5, size=(batch, length))
    return strings, np.sort(strings, axis=1)


def _one(length: int) -> int:
    return 1


def _same(length: int) -> int:
    return length


def _one_more(length: int) -> int:
    return length + 1


def _twice(length: int) -> int:
    return 2 * length


def _half(length: int) -> int:
    return (length + 1) // 2


_DIGITS = "".join(map(str, range(MODULUS)))

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="even_pairs",
            level="regular",
            symbols="01",
            output_size=2,
            generate=_even_pairs,
            output_length=_one,
            chance=0.5,
        ),
        Task(
            name="modular_arithmetic",
            level="regular",
            symbols=_DIGITS + "+-*_",  # the reference's alphabet has a blank that its generator never writes
            output_size=MODULUS,
            generate=modular_arithmetic,
            output_length=_one,
            chance=0.2,
            odd=True,
        ),
        Task(
            name="parity_check",
            level="regular",
            symbols="01",
            output_size=2,
            generate=_parity_check,
            output_length=_one,
            chance=0.5,
            order_free=True,
        ),
        Task(
            name="cycle_navigation",
            level="regular",
            symbols="<.>",
            output_size=MODULUS,
            generate=_cycle_navigation,
            output_length=_one,
            chance=0.2,
            order_free=True,
        ),
        Task(
            name="stack_manipulation",
            level="context_free",
            symbols="01xoi",
            output_size=3,
            generate=_stack_manipulation,
            output_length=_one_more,
            chance=0.5,
            terminated=True,
        ),
        Task(
            name="reverse_string",
            level="context_free",
            symbols="01",
            output_size=2,
            generate=_reverse_string,
            output_length=_same,
            chance=0.5,
        ),
        Task(
            name="modular_arithmetic_brackets",
            level="context_free",
            symbols=_DIGITS + "+-*()_",  # eleven symbols as in the reference; the last one is never written
            output_size=MODULUS,
            generate=modular_arithmetic_brackets,
            output_length=_one,
            chance=0.2,
        ),
        Task(
            name="solve_equation",
            level="context_free",
            symbols=_DIGITS + "+-()x=",
            output_size=MODULUS,
            generate=solve_equation,
            output_length=_one,
            chance=0.2,
            shortest=3,
        ),
        Task(
            name="duplicate_string",
            level="context_sensitive",
            symbols="01",
            output_size=2,
            generate=_duplicate_string,
            output_length=_twice,
            chance=0.5,
        ),
        Task(
            name="missing_duplicate",
            level="context_sensitive",
            symbols="01?_",
            output_size=2,
            generate=_missing_duplicate,
            output_length=_one,
            chance=0.5,
            shortest=2,
        ),
        Task(
            name="odds_first",
            level="context_sensitive",
            symbols="01",
            output_size=2,
            generate=_odds_first,
            output_length=_same,
            chance=0.5,
        ),
        Task(
            name="binary_addition",
            level="context_sensitive",
            symbols="01+",
            output_size=3,
            generate=binary_addition,
            output_length=_one_more,
            chance=0.5,
            shortest=3,
            terminated=True,
        ),
        Task(
            name="binary_multiplication",
            level="context_sensitive",
            symbols="01*",
            output_size=3,
            generate=binary_multiplication,
            output_length=_same,
            chance=0.5,
            shortest=3,
            terminated=True,
        ),
        Task(
            name="compute_sqrt",
            level="context_sensitive",
            symbols="01",
            output_size=2,
            generate=compute_sqrt,
            output_length=_half,
            chance=0.5,
        ),
        Task(
            name="bucket_sort",
            level="context_sensitive",
            symbols="01234",
            output_size=5,
            generate=_bucket_sort,
            output_length=_same,
            chance=0.2,
            order_free=True,
        ),
    )
}
"""Every task by name, from the lowest level to the highest."""
