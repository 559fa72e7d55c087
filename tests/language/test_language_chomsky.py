"""The Chomsky-hierarchy tasks against one brute-force answer per string, written without looking at the generators."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from huaben.errors import ConfigError
from huaben.language.chomsky import TASKS, Task, constant_accuracy, find_task, held_out_batch, training_batch
from huaben.rng import numpy_stream

SAMPLES = 200
LENGTHS = range(1, 61)


def parity(text: str) -> list[int]:
    return [text.count("1") % 2]


def pairs(text: str) -> list[int]:
    return [sum(a != b for a, b in pairwise(text)) % 2]


def walk(text: str) -> list[int]:
    place = 0
    for move in text:
        place += {"<": -1, ".": 0, ">": 1}[move]
    return [place % 5]


def value(text: str) -> list[int]:
    return [int(eval(text)) % 5]  # noqa: S307 - digits, operators and brackets of our own


def solution(text: str) -> list[int]:
    left, right = text.split("=")
    found = [digit for digit in range(5) if value(left.replace("x", str(digit))) == [int(right)]]
    assert len(found) == 1
    return found


def stack(text: str) -> list[int]:
    content: list[int] = []
    for symbol in text:
        if symbol == "x":
            content = content[:-1]
        else:
            content.append({"0": 0, "1": 1, "o": 0, "i": 1}[symbol])
    answer = [*reversed(content), 2]
    return answer + [0] * (len(text) + 1 - len(answer))


def hidden(text: str) -> list[int]:
    half = len(text) // 2
    assert text[2 * half :] == "_" * (len(text) % 2)
    word, again = text[:half], text[half : 2 * half]
    place = (word + again).index("?") % half
    assert sum(a != b for a, b in zip(word, again, strict=True)) == 1
    return [int((word[place] + again[place]).replace("?", ""))]


def binary(text: str, sign: str, length: int, combine: Callable[[int, int], int]) -> list[int]:
    first, second = (int(part[::-1], 2) for part in text.split(sign))
    assert first > 0
    assert second > 0
    answer = [int(bit) for bit in f"{combine(first, second):b}"[::-1]] + [2]
    return answer + [0] * (length - len(answer))


def root(text: str) -> list[int]:
    number, found = int(text, 2), 0
    while (found + 1) ** 2 <= number and len(text) <= 12:  # counting is enough for short strings
        found += 1
    if len(text) > 12:
        low, high = 0, number + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if middle * middle <= number else (low, middle)
        found = low
    return [int(bit) for bit in f"{found:b}".zfill((len(text) + 1) // 2)]


def as_numbers(text: str) -> list[int]:
    return [int(symbol) for symbol in text]


CHECKERS: dict[str, Callable[[str], list[int]]] = {
    "even_pairs": pairs,
    "modular_arithmetic": value,
    "parity_check": parity,
    "cycle_navigation": walk,
    "stack_manipulation": stack,
    "reverse_string": lambda text: as_numbers(text[::-1]),
    "modular_arithmetic_brackets": value,
    "solve_equation": solution,
    "duplicate_string": lambda text: as_numbers(text + text),
    "missing_duplicate": hidden,
    "odds_first": lambda text: as_numbers(text[1::2] + text[::2]),
    "binary_addition": lambda text: binary(text, "+", len(text) + 1, lambda a, b: a + b),
    "binary_multiplication": lambda text: binary(text, "*", len(text), lambda a, b: a * b),
    "compute_sqrt": root,
    "bucket_sort": lambda text: sorted(as_numbers(text)),
}

# name: level, input symbols, output symbols, y for n = 9, chance
TABLE = {
    "even_pairs": ("regular", 2, 2, 1, 0.5),
    "modular_arithmetic": ("regular", 9, 5, 1, 0.2),
    "parity_check": ("regular", 2, 2, 1, 0.5),
    "cycle_navigation": ("regular", 3, 5, 1, 0.2),
    "stack_manipulation": ("context_free", 5, 3, 10, 0.5),
    "reverse_string": ("context_free", 2, 2, 9, 0.5),
    "modular_arithmetic_brackets": ("context_free", 11, 5, 1, 0.2),
    "solve_equation": ("context_free", 11, 5, 1, 0.2),
    "duplicate_string": ("context_sensitive", 2, 2, 18, 0.5),
    "missing_duplicate": ("context_sensitive", 4, 2, 1, 0.5),
    "odds_first": ("context_sensitive", 2, 2, 9, 0.5),
    "binary_addition": ("context_sensitive", 3, 3, 10, 0.5),
    "binary_multiplication": ("context_sensitive", 3, 3, 9, 0.5),
    "compute_sqrt": ("context_sensitive", 2, 2, 5, 0.5),
    "bucket_sort": ("context_sensitive", 5, 5, 9, 0.2),
}


def test_the_table_of_tasks() -> None:
    found = {
        name: (task.level, task.input_size, task.output_size, task.output_length(9), task.chance)
        for name, task in TASKS.items()
    }
    assert found == TABLE


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_those_of_brute_force(name: str) -> None:
    task = TASKS[name]
    for length in filter(task.allows, LENGTHS):
        batch = task.sample(numpy_stream(5, name, length), SAMPLES, length)
        y = task.output_length(length)
        assert batch.inputs.shape == (SAMPLES, length) and batch.inputs.dtype == np.int64
        assert batch.targets.shape == batch.mask.shape == (SAMPLES, y) and batch.targets.dtype == np.int64
        assert 0 <= batch.inputs.min() and batch.inputs.max() < task.input_size
        assert 0 <= batch.targets.min() and batch.targets.max() < task.output_size
        for string, target, mask in zip(batch.inputs, batch.targets.tolist(), batch.mask.tolist(), strict=True):
            text = task.write(string)
            assert target == CHECKERS[name](text), text
            counted = target.index(task.output_size - 1) + 1 if task.terminated else y
            assert mask == [place < counted for place in range(y)]


@pytest.mark.parametrize("name", TASKS)
def test_every_symbol_occurs(name: str) -> None:
    task = TASKS[name]
    batch = task.sample(numpy_stream(1, name), 300, 31)
    unused = {"modular_arithmetic": "_", "modular_arithmetic_brackets": "_"}.get(name, "")
    assert {task.symbols[symbol] for symbol in np.unique(batch.inputs)} == set(task.symbols) - set(unused)
    assert set(np.unique(batch.targets)) == set(range(task.output_size))


@pytest.mark.parametrize("name", TASKS)
def test_the_same_stream_draws_the_same_batch(name: str) -> None:
    task = TASKS[name]
    again = [task.sample(numpy_stream(seed, "same"), 16, 13) for seed in (3, 3, 4)]
    assert np.array_equal(again[0].inputs, again[1].inputs) and np.array_equal(again[0].targets, again[1].targets)
    assert not np.array_equal(again[0].inputs, again[2].inputs)


@pytest.mark.parametrize("name", TASKS)
def test_a_constant_predictor_reaches_chance(name: str) -> None:
    task = TASKS[name]
    measured = constant_accuracy(task, task.lengths(41, 60), batch=400)
    # A product is zero more often than not: bracketed expressions tend to a third of zeros, not a fifth.
    expected = 0.3 if name == "modular_arithmetic_brackets" else task.chance
    assert measured["constant"] == pytest.approx(expected, abs=0.025)
    if name == "bucket_sort":
        assert measured["by_position"] > 0.7  # a sorted string is half known from its length
    elif name == "binary_multiplication":
        assert measured["by_position"] == pytest.approx(
            0.515, abs=0.02
        )  # its last bits are often those of small factors
    else:
        assert measured["by_position"] == pytest.approx(expected, abs=0.025)


def test_the_parts_of_a_bracketed_expression_have_uniform_lengths() -> None:
    task = TASKS["modular_arithmetic_brackets"]
    texts = [task.write(string) for string in task.sample(numpy_stream(0, "parts"), 6000, 10).inputs]
    sizes = []
    for text in texts:
        depth = 0
        for place, symbol in enumerate(text):
            depth += {"(": 1, ")": -1}.get(symbol, 0)
            if symbol in "+-*" and depth == 1 and text[place - 1] not in "(+-*":
                sizes.append(place - 1)
                break
    assert len(sizes) == len(texts)
    shares = np.bincount(sizes, minlength=7)[1:] / len(sizes)
    assert shares == pytest.approx([1 / 6] * 6, abs=0.02)  # left parts of 1 to 6 symbols


def test_binary_operands_are_uniform() -> None:
    strings = TASKS["binary_addition"].sample(numpy_stream(0, "operands"), 8000, 7).inputs
    sizes = (strings == 2).argmax(1)
    assert np.bincount(sizes, minlength=6)[1:] / len(sizes) == pytest.approx([1 / 5] * 5, abs=0.02)
    first = strings[sizes == 2][:, :2] @ [1, 2]
    assert np.bincount(first, minlength=4)[1:] / len(first) == pytest.approx([1 / 3] * 3, abs=0.05)


def test_training_lengths_are_uniform_and_test_strings_are_others() -> None:
    task = TASKS["modular_arithmetic"]
    lengths = [training_batch(task, 0, step, batch=1, longest=10).inputs.shape[1] for step in range(1000)]
    assert np.bincount(lengths)[1::2] / 1000 == pytest.approx([0.2] * 5, abs=0.05)
    assert np.bincount(lengths)[::2].sum() == 0
    test = held_out_batch(TASKS["reverse_string"], 40, batch=50)
    train = [training_batch(TASKS["reverse_string"], 1, step, batch=50, longest=40).inputs for step in range(50)]
    seen = {row.tobytes() for batch in train if batch.shape[1] == 40 for row in batch}
    assert seen and not seen & {row.tobytes() for row in test.inputs}


def test_order_free_tasks_ignore_order_and_the_others_do_not() -> None:
    for name, task in TASKS.items():
        if name in ("parity_check", "cycle_navigation", "bucket_sort"):
            text = task.write(task.sample(numpy_stream(0, name), 1, 9).inputs[0])
            assert task.order_free and CHECKERS[name](text) == CHECKERS[name](text[::-1][3:] + text[::-1][:3])
        else:
            assert not task.order_free


@pytest.mark.parametrize(
    ("name", "length", "hint"),
    [
        ("modular_arithmetic", 4, "odd lengths from 1"),
        ("missing_duplicate", 1, "lengths from 2"),
        ("solve_equation", 2, "lengths from 3"),
        ("binary_addition", 2, "lengths from 3"),
        ("even_pairs", 0, "lengths from 1"),
    ],
)
def test_an_impossible_length_is_refused(name: str, length: int, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        TASKS[name].sample(numpy_stream(0), 4, length)
    with pytest.raises(ConfigError, match=hint):
        TASKS[name].lengths(length, length)


def test_an_impossible_batch_and_an_unknown_task_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch=0"):
        TASKS["even_pairs"].sample(numpy_stream(0), 0, 4)
    with pytest.raises(ConfigError, match="did you mean 'bucket_sort'"):
        find_task("bucketsort")
    assert isinstance(find_task("parity_check"), Task)
