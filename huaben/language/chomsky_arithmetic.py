"""Arithmetic strings and their values, a whole batch at once: modular expressions, equations and binary numbers.

Each function draws ``(inputs (B, n), targets (B, y))`` of one task of :mod:`.chomsky` from a random stream.

Source: Delétang et al. 2023 (arXiv:2207.02098), appendix A, in the variants of its published code.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
import numpy.typing as npt

Symbols = npt.NDArray[np.int64]

MODULUS = 5
PLUS, MINUS, TIMES, OPEN, CLOSE = range(MODULUS, MODULUS + 5)
"""Symbols of expressions after the digits 0 to 4."""
_LEAF = 4  # the longest expression without an operator: (-d)


def modular_arithmetic(rng: np.random.Generator, batch: int, length: int) -> tuple[Symbols, Symbols]:
    """Digits with + - * between them; products bind first; the value modulo 5."""
    strings = np.empty((batch, length), dtype=np.int64)
    strings[:, ::2] = rng.integers(MODULUS, size=(batch, length // 2 + 1))
    strings[:, 1::2] = rng.integers(PLUS, TIMES + 1, size=(batch, length // 2))
    total, term = np.zeros(batch, dtype=np.int64), strings[:, 0]
    for place in range(1, length, 2):
        operator, digit = strings[:, place], strings[:, place + 1]
        product = operator == TIMES
        total = (total + np.where(product, 0, term)) % MODULUS
        term = np.where(product, term * digit, np.where(operator == MINUS, -digit, digit)) % MODULUS
    return strings, ((total + term) % MODULUS)[:, None]


def modular_arithmetic_brackets(rng: np.random.Generator, batch: int, length: int) -> tuple[Symbols, Symbols]:
    """A bracketed expression with + - *, and its value modulo 5."""
    strings, values = _expressions(rng, batch, length, operators=3)
    return strings, values[:, None]


def solve_equation(rng: np.random.Generator, batch: int, length: int) -> tuple[Symbols, Symbols]:
    """A bracketed expression with + and -, one digit of it replaced by x, and ``= value``: what is x?

    The digit is the first one at or after a uniform place, going round. Without products x has one solution.
    """
    strings, values = _expressions(rng, batch, length - 2, operators=2)
    ring = (rng.integers(length - 2, size=(batch, 1)) + np.arange(length - 2)) % (length - 2)
    first = (np.take_along_axis(strings, ring, axis=1) < MODULUS).argmax(1)[:, None]
    place = np.take_along_axis(ring, first, axis=1)
    solution = np.take_along_axis(strings, place, axis=1)
    # This task's alphabet has no *: brackets move down by one, and x and = follow them.
    strings = np.where(strings > TIMES, strings - 1, strings)
    unknown, equals = CLOSE, CLOSE + 1
    np.put_along_axis(strings, place, unknown, axis=1)
    ending = np.stack([np.full(batch, equals), values], axis=1)
    return np.concatenate([strings, ending], axis=1), solution


def _expressions(rng: np.random.Generator, batch: int, length: int, operators: int) -> tuple[Symbols, Symbols]:
    """Draw expressions (B, length) of the grammar and their values (B,) modulo 5.

    ``E -> d | -d | (d) | (-d)`` for lengths 1 to 4, and ``E -> (E op E)`` from 5 on, where the length of the left part
    is uniform. All parts of one depth are split at once on the way down; values are put together on the way up.
    """
    strings = np.empty((batch, length), dtype=np.int64)
    rows, starts, sizes = np.arange(batch), np.zeros(batch, dtype=np.int64), np.full(batch, length)
    levels: list[
        tuple[Symbols, Symbols, Symbols]
    ] = []  # per depth: value of each part if a leaf, which split, operator
    while rows.size:
        leaf_values = _write_leaves(rng, strings, rows, starts, sizes)
        split = np.flatnonzero(sizes > _LEAF)
        rows, starts, sizes = rows[split], starts[split], sizes[split]
        left = rng.integers(1, np.maximum(sizes - 3, 2))  # 1 to size - 4
        operator = rng.integers(operators, size=split.size)
        strings[rows, starts] = OPEN
        strings[rows, starts + 1 + left] = PLUS + operator
        strings[rows, starts + sizes - 1] = CLOSE
        levels.append((leaf_values, split, operator))
        starts = np.concatenate([starts + 1, starts + left + 2])
        sizes = np.concatenate([left, sizes - left - 3])
        rows = np.concatenate([rows, rows])
    below = np.empty(0, dtype=np.int64)
    for values, split, operator in reversed(levels):
        left, right = below[: split.size], below[split.size :]
        values[split] = np.choose(operator, [left + right, left - right, left * right]) % MODULUS
        below = values
    return strings, below


def _write_leaves(
    rng: np.random.Generator, strings: Symbols, rows: Symbols, starts: Symbols, sizes: Symbols
) -> Symbols:
    """Write the parts of up to four symbols; return a value for every part, meaningless for the longer ones."""
    digits = rng.integers(MODULUS, size=rows.size)
    bracketed, negative = (sizes == 3) | (sizes == 4), (sizes == 2) | (sizes == 4)
    leaf = sizes <= _LEAF
    strings[rows[bracketed], starts[bracketed]] = OPEN
    strings[rows[bracketed], (starts + sizes - 1)[bracketed]] = CLOSE
    strings[rows[negative], (starts + bracketed)[negative]] = MINUS
    strings[rows[leaf], (starts + bracketed + negative)[leaf]] = digits[leaf]
    return np.where(negative, -digits, digits) % MODULUS


# ------------------------------------------------------------------------------------------------------- binary numbers


def binary_addition(rng: np.random.Generator, batch: int, length: int) -> tuple[Symbols, Symbols]:
    """Two positive binary numbers, lowest bit first, with a 2 between: their sum in bits, a 2, and zeros to n + 1."""
    strings, first, second = _operands(rng, batch, length)
    return strings, _terminated(_carried(first + second, length + 1))


def binary_multiplication(rng: np.random.Generator, batch: int, length: int) -> tuple[Symbols, Symbols]:
    """Two positive binary numbers, lowest bit first, with a 2 between: their product in bits, a 2, and zeros to n."""
    strings, first, second = _operands(rng, batch, length)
    columns = np.zeros((batch, length), dtype=np.int64)
    for place in range(length):
        columns[:, place:] += first[:, place, None] * second[:, : length - place]
    return strings, _terminated(_carried(columns, length))


def compute_sqrt(rng: np.random.Generator, batch: int, length: int) -> tuple[Symbols, Symbols]:
    """A positive binary number, highest bit first: the integer part of its square root in ceil(n / 2) bits."""
    strings = _positive_bits(rng, np.ones((batch, length), dtype=np.bool_))
    half = (length + 1) // 2
    # Python's whole numbers have no size limit: one of them a row, packed and unpacked together.
    packed = np.packbits(np.pad(strings.astype(np.uint8), ((0, 0), (-length % 8, 0))), axis=1)
    width = (half + 7) // 8
    roots = b"".join(isqrt(int.from_bytes(row.tobytes(), "big")).to_bytes(width, "big") for row in packed)
    bits = np.unpackbits(np.frombuffer(roots, dtype=np.uint8).reshape(batch, width), axis=1)
    return strings, bits[:, 8 * width - half :].astype(np.int64)


def _operands(rng: np.random.Generator, batch: int, length: int) -> tuple[Symbols, Symbols, Symbols]:
    """Return strings (B, n) and both numbers, (B, n) bits each from the lowest, zeros beyond their ends."""
    places = np.arange(length)
    size = rng.integers(1, length - 1, size=(batch, 1))  # of the first number: 1 to n - 2
    bits = _positive_bits(rng, places < size) + _positive_bits(rng, places > size)
    strings = np.where(places == size, 2, bits)
    first = np.where(places < size, bits, 0)
    moved = places + size + 1
    second = np.where(moved < length, np.take_along_axis(bits, moved.clip(max=length - 1), axis=1), 0)
    return strings, first, second


def _positive_bits(rng: np.random.Generator, where: npt.NDArray[np.bool_]) -> Symbols:
    """Return (B, n) bits, zero outside of ``where``, each row uniform among those with a one."""
    bits = rng.integers(2, size=where.shape) * where
    while (zero := np.flatnonzero(~bits.any(1))).size:
        bits[zero] = rng.integers(2, size=(zero.size, where.shape[1])) * where[zero]
    return bits


def _carried(columns: Symbols, length: int) -> Symbols:
    """Return (B, length) bits of the numbers ``sum(columns[:, i] * 2**i)``; their carries must end within."""
    bits = np.zeros((columns.shape[0], length), dtype=np.int64)
    carry = np.zeros(columns.shape[0], dtype=np.int64)
    for place in range(length):
        carry = carry + (columns[:, place] if place < columns.shape[1] else 0)
        bits[:, place] = carry & 1
        carry >>= 1
    return bits


def _terminated(bits: Symbols) -> Symbols:
    """Return the bits with a 2 after each row's highest one."""
    length = bits.shape[1]
    end = length - bits[:, ::-1].argmax(1)
    return np.where(np.arange(length) == end[:, None], 2, bits)
