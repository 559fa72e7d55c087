"""Batches of seeds and their hard pairs.

A batch is a pure function of the seed and the step, so that any process can compute any part of any batch, and a run
that is resumed sees what it would have seen. The set of rows of a batch does not depend on the number of processes,
only their layout does: one block a process, in each the seeds first and then their partners (see
:func:`huaben.clip.margin.hard_mask`).

Legend: N pairs, M of them seeds, S seeds of a batch, k hard pairs of a row, p of them added for each seed.

Source: HELIP (arXiv:2305.05208), section 3.3.
Differs: in the released code each process shuffles on its own (so an epoch misses a third of the data on 8 processes),
and a list that is too short is silently completed with random rows; here epochs are partitions, and short lists are
errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from ..rng import check_seed, numpy_stream, stream_seed

IntArray = NDArray[np.int64]

CHUNK_VALUES = 1 << 24  # list entries that are checked at a time
MAX_VISITS = 20_000  # groups looked at to free a partner, for one seed
RANDOM_CANDIDATES = 4  # draws for each random partner before rows are listed

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class HardPairBatchSampler:
    """Draws batches of ``batch_size`` pairs: S seeds, and p partners of each from the first ``k_use`` of its list.

    The seeds of the successive steps are one permutation of all seeds after the other: each epoch uses every seed once,
    and a batch that an epoch does not fill goes on into the next (other seeds then: no row twice). Partners are drawn
    without replacement by a hash of seed, epoch and row. Where a row is already in the batch the next of the drawn
    order is taken, and if there is none left, another seed changes its partner. If even that fails (lists that hold
    little but each other, in a batch that is a large part of the data) a row is repeated; the losses leave repeated
    rows out by their ids, and :meth:`repeats` counts them.

    Iterating gives the batches of one epoch (:meth:`set_epoch`) as lists of rows, only this process's block: what
    ``torch.utils.data.DataLoader(batch_sampler=...)`` takes.

    Args:
        num_pairs: N.
        hard: (N, k) rows of the hard pairs, best first, -1 where there are no more; a memory-mapped array will do.
            ``"random"`` draws partners from all rows (the control for any claim about hard pairs); None adds none.
        batch_size: of all processes together, partners included.
        hard_per_seed: p.
        k_use: how many of a list are used, where there are lists; all by default.
        seed: of everything drawn.
        epoch: the epoch that iterating gives first.
        rank: of this process, below ``world``.
        world: blocks of a batch.
        seeds: rows that may be seeds (int rows or a bool mask), all by default. Others may still be partners.
        in_degree_cap: rows that more lists than this name are drawn as many times less often, which evens out how often
            a popular row is seen; partners are then not equally likely. None draws all alike.
        ids: (N,) what each pair is; copies of a pair have the same id, and no partner is a copy of a row in the batch.
        drop_last: leave out what does not fill a batch at the end of an epoch, so that all have the same length. Always
            so if there are fewer than 2 S seeds.

    Raises:
        ConfigError: if the sizes do not fit.
        DataError: if a seed's list is shorter than ``k_use``, or names rows that are not there, or itself.
    """

    def __init__(
        self,
        num_pairs: int,
        hard: NDArray[Any] | Literal["random"] | None,
        *,
        batch_size: int,
        hard_per_seed: int = 1,
        k_use: int | None = None,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world: int = 1,
        seeds: NDArray[Any] | None = None,
        in_degree_cap: int | None = None,
        ids: NDArray[Any] | None = None,
        drop_last: bool = False,
    ) -> None:
        self.num_pairs, self.hard, self.batch_size = num_pairs, hard, batch_size
        self.hard_per_seed = 0 if hard is None else hard_per_seed
        self.seed, self.epoch, self.rank, self.world = check_seed(seed), epoch, rank, world
        self._check_sizes(hard_per_seed)
        self.seeds_per_batch = batch_size // (1 + self.hard_per_seed)
        self.seeds_per_block = self.seeds_per_batch // world
        self.block_size = batch_size // world
        self._dtype = np.int32 if num_pairs < 2**31 else np.int64
        self._rows = None if seeds is None else self._allowed(seeds)
        self.num_seeds = num_pairs if self._rows is None else len(self._rows)
        if self.num_seeds < self.seeds_per_batch or num_pairs < batch_size:
            raise ConfigError(
                f"{self.num_seeds} seeds among {num_pairs} pairs, expected at least {self.seeds_per_batch} among "
                f"{batch_size} for batch_size={batch_size} with hard_per_seed={self.hard_per_seed}",
                hint="make the batch smaller",
            )
        self.drop_last = drop_last or self.num_seeds < 2 * self.seeds_per_batch
        self.ids = None if ids is None else np.asarray(ids)
        if self.ids is not None and self.ids.shape != (num_pairs,):
            raise ConfigError(f"ids of shape {self.ids.shape}, expected ({num_pairs},)", hint="one id per pair")
        self.k_use = 0
        self._weight: NDArray[np.float32] | None = None
        if isinstance(hard, np.ndarray):
            self.k_use = self._checked_k_use(hard, k_use)
            degree = self._check_lists(hard, in_degree_cap is not None)
            if in_degree_cap is not None:
                if in_degree_cap < 1:
                    raise ConfigError(f"in_degree_cap={in_degree_cap!r}, expected at least 1", hint="use k_use")
                self._weight = np.minimum(1.0, in_degree_cap / np.maximum(degree, 1)).astype(np.float32)
        self._orders: dict[int, NDArray[Any]] = {}

    # -- what is asked for ---------------------------------------------------------------------------------------

    def _check_sizes(self, hard_per_seed: int) -> None:
        for name, value, low in (
            ("num_pairs", self.num_pairs, 1),
            ("batch_size", self.batch_size, 1),
            ("hard_per_seed", hard_per_seed, 0 if self.hard is None else 1),
            ("world", self.world, 1),
            ("epoch", self.epoch, 0),
        ):
            if isinstance(value, bool) or int(value) != value or value < low:
                raise ConfigError(f"{name}={value!r}, expected a whole number from {low}", hint=f"use {low} or more")
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"rank={self.rank!r}, expected 0 to {self.world - 1}", hint="ranks count from 0")
        unit = self.world * (1 + self.hard_per_seed)
        if self.batch_size % unit:
            raise ConfigError(
                f"batch_size={self.batch_size} is no multiple of world * (1 + hard_per_seed) = {unit}",
                hint=f"use {max(unit, self.batch_size // unit * unit)}",
            )
        if isinstance(self.hard, str) and self.hard != "random":
            raise ConfigError(f"hard={self.hard!r}, expected an array, 'random' or None", hint="pass HardPairs.pairs")
        if self.hard is not None and not isinstance(self.hard, (str, np.ndarray)):
            raise ConfigError(
                f"hard is a {type(self.hard).__name__}, expected an array, 'random' or None",
                hint="pass HardPairs.pairs",
            )

    def _allowed(self, seeds: NDArray[Any]) -> NDArray[Any]:
        rows = np.asarray(seeds)
        if rows.dtype == bool:
            if rows.shape != (self.num_pairs,):
                raise ConfigError(f"a mask of shape {rows.shape}, expected ({self.num_pairs},)", hint="one flag a pair")
            return np.flatnonzero(rows).astype(self._dtype)
        rows = np.unique(rows)
        if len(rows) and (rows[0] < 0 or rows[-1] >= self.num_pairs or rows.dtype.kind not in "iu"):
            raise ConfigError(
                f"seeds from {rows[0]} to {rows[-1]}, expected rows below {self.num_pairs}", hint="pass row numbers"
            )
        return rows.astype(self._dtype)

    def _checked_k_use(self, hard: NDArray[Any], k_use: int | None) -> int:
        if hard.ndim != 2 or len(hard) != self.num_pairs or hard.dtype.kind not in "iu":
            raise ConfigError(
                f"hard is {hard.dtype} of shape {hard.shape}, expected whole numbers of shape ({self.num_pairs}, k)",
                hint="mine the pairs of this very data, or match them with HardPairs.matched",
            )
        wanted = hard.shape[1] if k_use is None else k_use
        if not self.hard_per_seed <= wanted <= hard.shape[1]:
            raise ConfigError(
                f"k_use={wanted}, expected {self.hard_per_seed} (hard_per_seed) to {hard.shape[1]} (length of the "
                "lists)",
                hint="mine longer lists, or use less of them",
            )
        return wanted

    def _check_lists(self, hard: NDArray[Any], count: bool) -> IntArray:
        """Read all lists once, in parts; return (N,) how many name each row, if asked to."""
        degree = np.zeros(self.num_pairs if count else 0, np.int64)
        is_seed = None
        if self._rows is not None:
            is_seed = np.zeros(self.num_pairs, bool)
            is_seed[self._rows] = True
        chunk, short, first = max(1, CHUNK_VALUES // self.k_use), 0, -1
        for start in range(0, self.num_pairs, chunk):
            part = np.asarray(hard[start : start + chunk, : self.k_use])
            if part.dtype.kind == "u":
                part = part.astype(np.int64)
            if part.max() >= self.num_pairs or part.min() < -1:
                bad = start + int(np.argmax(((part >= self.num_pairs) | (part < -1)).any(1)))
                raise DataError(
                    f"the list of row {bad} names rows that are not among {self.num_pairs}",
                    hint="match the list to the data with HardPairs.matched",
                )
            itself = (part == np.arange(start, start + len(part))[:, None]).any(1)
            if itself.any():
                raise DataError(
                    f"the list of row {start + int(np.argmax(itself))} names that row itself",
                    hint="mine the list with mine_hard_pairs, which leaves it out",
                )
            lacking = (part < 0).any(1)
            if is_seed is not None:
                lacking &= is_seed[start : start + len(part)]
            if lacking.any():
                first = start + int(np.argmax(lacking)) if first < 0 else first
                short += int(lacking.sum())
            if count:
                named = part[part >= 0]
                degree += np.bincount(named, minlength=self.num_pairs)
        if short:
            raise DataError(
                f"{short} seeds have fewer than k_use={self.k_use} hard pairs, the first is row {first}",
                hint="use a smaller k_use, mine again with other thresholds, or leave these rows out of seeds",
            )
        return degree

    # -- steps and epochs ----------------------------------------------------------------------------------------

    @property
    def steps_per_epoch(self) -> float:
        """Batches an epoch; not a whole number where batches go on from one epoch into the next."""
        whole = self.num_seeds / self.seeds_per_batch
        return float(int(whole)) if self.drop_last else whole

    def first_step(self, epoch: int) -> int:
        """Return the first step whose batch begins in an epoch."""
        if self.drop_last:
            return epoch * (self.num_seeds // self.seeds_per_batch)
        return -(-epoch * self.num_seeds // self.seeds_per_batch)

    def seeds(self, step: int) -> tuple[IntArray, IntArray]:
        """Return the rows (S,) and the epochs (S,) of the seeds of a step."""
        if step < 0:
            raise ConfigError(f"step={step!r} is below 0", hint="steps count from 0")
        size = self.seeds_per_batch
        if self.drop_last:
            epoch, inside = divmod(step, self.num_seeds // size)
            offset = inside * size
        else:
            epoch, offset = divmod(step * size, self.num_seeds)
        rows = self._order(epoch)[offset : offset + size]
        epochs = np.full(size, epoch, np.int64)
        if len(rows) < size:
            epochs[len(rows) :] += 1
            rows = np.concatenate([rows, self._order(epoch + 1)[: size - len(rows)]])
        return rows.astype(np.int64), epochs

    def _order(self, epoch: int) -> NDArray[Any]:
        """Return the seeds (M,) in the order of an epoch; the last two asked for are kept."""
        order = self._orders.get(epoch)
        if order is None:
            order = self._permutation(epoch)
            self._orders = {**dict(list(self._orders.items())[-1:]), epoch: order}
        return order

    def _permutation(self, epoch: int) -> NDArray[Any]:
        """Return the seeds (M,) in a fresh order.

        The first ones share a batch with the last ones of the epoch before; those that are the same are exchanged with
        ones from the middle, so neither end of the permutation before or after is touched.
        """
        order = self._shuffled(epoch)
        before = 0 if self.drop_last else epoch * self.num_seeds % self.seeds_per_batch
        if before:
            head = self.seeds_per_batch - before
            last = self._shuffled(epoch - 1)[-before:]
            clashes = np.flatnonzero(np.isin(order[:head], last))
            if len(clashes):
                middle = order[head : head + 2 * self.seeds_per_batch]
                middle = middle[: self.num_seeds - self.seeds_per_batch - head]
                free = head + np.flatnonzero(~np.isin(middle, last))[: len(clashes)]
                order[clashes], order[free] = order[free], order[clashes]
        return order

    def _shuffled(self, epoch: int) -> NDArray[Any]:
        rng = numpy_stream(self.seed, "hard-pair-seeds", epoch)
        if self._rows is not None:
            return rng.permutation(self._rows)
        order = np.arange(self.num_pairs, dtype=self._dtype)
        rng.shuffle(order)
        return order

    # -- batches -------------------------------------------------------------------------------------------------

    def batch(self, step: int) -> IntArray:
        """Return the rows (batch_size,) of a step, all processes' blocks one after the other."""
        seeds, epochs = self.seeds(step)
        n, p = self.seeds_per_block, self.hard_per_seed
        if not p:
            return seeds
        partners = self._partners(seeds, epochs)
        blocks = [seeds.reshape(self.world, n), partners.reshape(self.world, n * p)]
        return np.concatenate(blocks, axis=1).reshape(-1)

    def block(self, step: int, rank: int | None = None) -> IntArray:
        """Return the rows (batch_size / world,) of one process, this one by default."""
        rank = self.rank if rank is None else rank
        return self.batch(step).reshape(self.world, -1)[rank]

    def repeats(self, step: int) -> int:
        """Return how many rows of a step's batch (or copies of them, by ids) are there already."""
        groups = self._groups(self.batch(step))
        return len(groups) - len(np.unique(groups))

    def stream(self, step: int = 0) -> Iterator[list[int]]:
        """Yield this process's blocks from a step on, without end."""
        while True:
            yield self.block(step).tolist()
            step += 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that iterating gives."""
        if epoch < 0:
            raise ConfigError(f"epoch={epoch!r} is below 0", hint="epochs count from 0")
        self.epoch = epoch

    def __len__(self) -> int:
        return self.first_step(self.epoch + 1) - self.first_step(self.epoch)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step(self.epoch), self.first_step(self.epoch + 1)):
            yield self.block(step).tolist()

    # -- partners ------------------------------------------------------------------------------------------------

    def _groups(self, rows: IntArray) -> NDArray[Any]:
        return rows if self.ids is None else self.ids[rows]

    def _partners(self, seeds: IntArray, epochs: IntArray) -> IntArray:
        """Return (S, p): the first p of each seed's candidates, with clashes repaired."""
        candidates = self._candidates(seeds, epochs)
        chosen = candidates[:, : self.hard_per_seed].copy()
        groups = self._groups(np.concatenate([seeds, chosen.reshape(-1)]))
        fresh = np.zeros(len(groups), bool)
        fresh[np.unique(groups, return_index=True)[1]] = True
        fresh[: len(seeds)] = True
        clashes = np.flatnonzero(~fresh[len(seeds) :])
        if len(clashes):
            self._repair(seeds, candidates, chosen, clashes)
        return chosen

    def _candidates(self, seeds: IntArray, epochs: IntArray) -> IntArray:
        """Return (S, c): rows a seed may be given, in the order drawn for it."""
        key = np.uint64(stream_seed(self.seed, "hard-pair-partners"))
        state = _mixed(_mixed(key + epochs.astype(np.uint64) * _STEP) + seeds.astype(np.uint64) * _STEP)[:, None]
        if not isinstance(self.hard, np.ndarray):
            return self._random_candidates(seeds, state)
        drawn = _mixed(state + np.arange(1, self.k_use + 1, dtype=np.uint64) * _STEP)
        lists = np.asarray(self.hard[seeds, : self.k_use]).astype(np.int64)
        if self._weight is None:
            order = np.argsort(drawn, axis=1)
        else:  # exponential clocks: the first to ring is drawn, and one with half the weight takes twice as long
            clocks = -np.log1p(-(drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53) / self._weight[lists]
            order = np.argsort(clocks, axis=1)
        return np.take_along_axis(lists, order, axis=1)

    def _random_candidates(self, seeds: IntArray, state: NDArray[np.uint64]) -> IntArray:
        """Return rows drawn from all but the seed itself."""
        count = RANDOM_CANDIDATES * self.hard_per_seed
        drawn = _mixed(state + np.arange(1, count + 1, dtype=np.uint64) * _STEP)
        rows = (drawn % np.uint64(max(1, self.num_pairs - 1))).astype(np.int64)
        return rows + (rows >= seeds[:, None])

    def _repair(self, seeds: IntArray, candidates: IntArray, chosen: IntArray, clashes: IntArray) -> None:
        """Give the slots (seed * p + draw) of ``clashes`` other partners, in place."""
        p, flat = self.hard_per_seed, chosen.reshape(-1)
        names = self._groups(candidates)
        owner: dict[int, int] = {int(group): -1 for group in self._groups(seeds)}
        waiting = {int(slot) for slot in clashes}
        for slot, group in enumerate(self._groups(flat).tolist()):
            if slot not in waiting:
                owner[group] = slot
        left: list[int] = []
        for slot in clashes.tolist():
            row = slot // p
            found = next((c for c, group in enumerate(names[row].tolist()) if group not in owner), None)
            if found is None:
                left.append(slot)
            else:
                owner[int(names[row, found])] = slot
                flat[slot] = candidates[row, found]
        for slot in left:
            if not self._make_room(slot, names, candidates, flat, owner) and isinstance(self.hard, str):
                self._any_row(slot, seeds, flat, owner)

    def _make_room(
        self, slot: int, names: NDArray[Any], candidates: IntArray, flat: IntArray, owner: dict[int, int]
    ) -> bool:
        """Find a chain of slots that each give their partner to the one before, to a partner nobody has (BFS)."""
        p = self.hard_per_seed
        came: dict[int, tuple[int, int]] = {}  # group -> the slot that would take it, and which candidate it is
        queue = [slot]
        for taker in queue:
            row = taker // p
            for column, group in enumerate(names[row].tolist()):
                if group in came or owner.get(group) == -1:
                    continue
                came[group] = (taker, column)
                if group not in owner:
                    while True:  # hand over along the way back
                        taker, column = came[group]
                        given = flat[taker]
                        flat[taker] = candidates[taker // p, column]
                        owner[group] = taker
                        if taker == slot:
                            return True
                        group = int(self._groups(given[None])[0])
                queue.append(owner[group])
            if len(came) > MAX_VISITS:
                break
        return False

    def _any_row(self, slot: int, seeds: IntArray, flat: IntArray, owner: dict[int, int]) -> None:
        """Give a slot of random partners a row that is not in the batch: the first at or after its own draw."""
        for shift in range(self.num_pairs):
            row = (flat[slot] + shift) % self.num_pairs
            group = int(self._groups(row[None])[0])
            if group not in owner:
                owner[group], flat[slot] = slot, row
                return


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 well-mixed bits of each value (the finaliser of SplitMix64)."""
    values = values + _STEP
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return values ^ (values >> np.uint64(31))
