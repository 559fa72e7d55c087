"""The relation predictor: which of two architectures is better on a task.

Two architecture graphs and a task vector go in, the probability that the first one is better comes out. Embeddings are
computed once per architecture, and the head acts on each architecture before it meets the other, so all pairs of n
architectures cost one pass over n * n * h numbers.

Shape letters: M members, N architectures, P pairs, T tasks, h head width, d task vector.

Source: Arch-Graph (arXiv:2204.05941). Its head, loss and schedule could not be read; ``head="antisym"`` is ours,
``head="utility"`` is RankNet's difference of scores, ``head="concat"`` follows BRP-NAS (arXiv:2007.08668).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Config
from ..errors import ConfigError, DataError, ShapeError
from ..rng import torch_stream
from .encoder import GraphEncoder, MemberLinear, PreparedGraphs, embed_in_blocks
from .graphs import GraphBatch

MAX_PAIRS = 20_000_000
"""The largest pair matrix that is built whole: 80 MB in float32."""

Head = Literal["antisym", "utility", "concat"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RelationConfig(Config):
    """The predictor and how it is fitted.

    Args:
        layers, width: of the graph network.
        head: "antisym": ``s_ij = g(i, j) - g(j, i)``, so that ``p_ij + p_ji = 1`` by construction; "utility":
            ``s_ij = f(i) - f(j)``, which has no cycles; "concat": ``g(i, j)`` alone, made symmetric afterwards.
        head_width: h.
        task_dim: d; 0 gives the predictor no task.
        dropout: in the graph network while fitting.
        directions: message passing along the data flow, or both ways.
        readout: "mean_output", or a "global" node.
        source_steps, source_lr: the phase on source tasks.
        target_steps, target_lr: each round on the target task.
        target_weight: of the target task in the loss; a source task counts 1.
        weight_decay: of AdamW.
        grad_clip: largest gradient norm of one member.
        pairs_per_task: pairs drawn for each task and member in a step.
        archs_per_step: most source architectures encoded in a step; target architectures are always all there.
        margin: pairs closer than this times the standard deviation of the task's values carry no label; ties never do.
        soft: labels are probabilities, ``sigmoid(m_i - m_j)`` of values scaled to [0, 1], instead of 0 and 1 (BRP-NAS).
        top_weight: a pair with an architecture of the task's top decile counts ``1 + top_weight`` times.
        restart: weights that a round on the target starts from: those of the "source" phase, or of the "previous" round.
        bootstrap: each member learns from a bootstrap sample of the architectures; what it did not draw is its held-out
            set. False: it holds out ``holdout`` of them and learns from the others.
        holdout: share of architectures held out without ``bootstrap``, where that makes at least 3.
        eval_every: steps between looks at held-out architectures; the best weights are kept. 0 never looks.
        patience: looks without improvement of any member before fitting stops.
    """

    layers: int = 3
    width: int = 32
    head: Head = "antisym"
    head_width: int = 32
    task_dim: int = 8
    dropout: float = 0.0
    directions: Literal["both", "along"] = "both"
    readout: Literal["mean_output", "global"] = "mean_output"
    source_steps: int = 200
    source_lr: float = 5e-3
    target_steps: int = 60
    target_lr: float = 3e-3
    target_weight: float = 10.0
    weight_decay: float = 1e-4
    grad_clip: float = 5.0
    pairs_per_task: int = 256
    archs_per_step: int = 64
    margin: float = 0.0
    soft: bool = False
    top_weight: float = 0.0
    restart: Literal["source", "previous"] = "previous"
    bootstrap: bool = True
    holdout: float = 0.1
    eval_every: int = 20
    patience: int = 5

    def __post_init__(self) -> None:
        for name, low in (
            ("layers", 1),
            ("width", 1),
            ("head_width", 1),
            ("task_dim", 0),
            ("source_steps", 0),
            ("target_steps", 0),
            ("weight_decay", 0),
            ("pairs_per_task", 1),
            ("archs_per_step", 2),
            ("margin", 0),
            ("top_weight", 0),
            ("target_weight", 0),
            ("eval_every", 0),
            ("patience", 1),
        ):
            if not getattr(self, name) >= low:
                raise ConfigError(f"{name}={getattr(self, name)!r} is below {low}", hint=f"use {low} or more")
        for name in ("source_lr", "target_lr", "grad_clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)!r} is not positive", hint="use a number above 0")
        for name in ("dropout", "holdout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)!r} is not in [0, 1)")


PRESETS: dict[str, RelationConfig] = {
    "default": RelationConfig(),
    "large": RelationConfig(width=64, head_width=64, task_dim=16, dropout=0.1, target_steps=120),
    "brp": RelationConfig(
        layers=4,
        width=600,
        head="concat",
        head_width=600,
        dropout=0.2,
        directions="along",
        readout="global",
        target_steps=120,
        source_lr=3.5e-4,
        target_lr=3.5e-4,
        weight_decay=5e-4,
    ),
}
"""Named settings: ours, as measured; four times the size; and BRP-NAS's sizes and rates."""


class RelationPredictor(nn.Module):
    """Graph network and head, for ``members`` independent predictors at once.

    Args:
        config: sizes and head.
        node_size, extra_size: features of a node and of an architecture (:class:`~.graphs.GraphBatch`).
        members: M.
        seed: of the initial weights.
    """

    def __init__(
        self, config: RelationConfig, node_size: int, extra_size: int = 0, *, members: int = 1, seed: int = 0
    ) -> None:
        super().__init__()
        if members < 1:
            raise ConfigError(f"members={members} is below 1", hint="use 3 to 5 for uncertainty, 1 for none")
        self.config, self.members = config, members
        generator = torch_stream(seed, "relation predictor")
        self.encoder = GraphEncoder(
            node_size,
            extra_size,
            layers=config.layers,
            width=config.width,
            members=members,
            directions=config.directions,
            readout=config.readout,
            dropout=config.dropout,
            generator=generator,
        )
        sides = 1 if config.head == "utility" else 2
        width = config.head_width
        self.item = MemberLinear(members, self.encoder.embedding_size, sides * width, generator, bias=False)
        self.task = MemberLinear(members, config.task_dim, width, generator, bias=True)
        self.last = MemberLinear(members, width, 1, generator, bias=config.head == "concat")

    def embed(self, graphs: GraphBatch) -> Tensor:
        """Return embeddings (M, N, embedding_size), without gradients."""
        return embed_in_blocks(self.encoder, graphs)

    def forward(
        self, graphs: PreparedGraphs, pairs: Tensor, tasks: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return logits (M, T, P) that the first of each pair is better.

        Args:
            graphs: K architectures, for all members or (M, K).
            pairs: long (M, T, P, 2), places in ``graphs``.
            tasks: (M, T, d).
            generator: of the dropout masks; None drops nothing.
        """
        return self.logits(self.encoder(graphs, generator), pairs, tasks)

    def logits(self, embeddings: Tensor, pairs: Tensor, tasks: Tensor) -> Tensor:
        """Return logits (M, T, P) for pairs of embedded architectures; arguments as for :meth:`forward`."""
        members, num_tasks, num_pairs, _ = pairs.shape
        items = self.item(embeddings)  # (M, K, sides * h)
        count, width = items.shape[1], self.config.head_width
        task = self.task(tasks)  # (M, T, h)
        offset = torch.arange(members).view(-1, 1, 1) * count
        first, second = ((pairs[..., side] + offset).flatten() for side in (0, 1))
        table = items.reshape(members * count, -1)
        if self.config.head == "utility":
            shape = (members, num_tasks, num_pairs, width)
            task = task.unsqueeze(2)
            left = self.last(F.relu(table.index_select(0, first).view(shape) + task))
            right = self.last(F.relu(table.index_select(0, second).view(shape) + task))
            return (left - right).squeeze(-1)
        # A row holds (a | b); the other one's halves are swapped, so the sum is (a_i + b_j | b_i + a_j).
        swapped = items.unflatten(2, (2, width)).flip(2).reshape(members * count, 2 * width)
        if self.config.head == "concat":
            table, swapped = table[:, :width], swapped[:, :width]
        both = table.index_select(0, first) + swapped.index_select(0, second)
        ways = table.shape[1] // width
        both = F.relu(
            both.view(members, num_tasks, num_pairs, ways, width) + task.view(members, num_tasks, 1, 1, width)
        )
        scores = self.last(both).squeeze(-1)  # (M, T, P, 2 or 1)
        return scores[..., 0] - scores[..., 1] if self.config.head == "antisym" else scores[..., 0]

    def relations(self, graphs: GraphBatch, task: Tensor) -> Relations:
        """Embed ``graphs`` for one task (M, d) and return their relations, to be read in blocks."""
        with torch.no_grad():
            if task.shape != (self.members, self.config.task_dim):
                raise ShapeError(
                    f"the task vector is {tuple(task.shape)}, expected ({self.members}, {self.config.task_dim})"
                )
            items = self.item(self.embed(graphs))
            items[..., : self.config.head_width] += self.task(task.unsqueeze(1))
            weight, bias = self.last.weight.squeeze(2), self.last.bias
            return Relations(self.config.head, items, weight, None if bias is None else bias.flatten())

    def pair_matrix(self, graphs: GraphBatch, task: Tensor) -> Tensor:
        """Return mean probabilities (N, N) that row beats column; ``P + P.T == 1`` and 0.5 on the diagonal."""
        return self.relations(graphs, task).matrix()[0]


class Relations:
    """Embedded architectures whose relations are computed when asked for.

    ``w . ReLU(x)`` equals ``w . x / 2 + sum_k sign(w_k) |w_k x_k| / 2``, and a sum of absolute differences over all
    pairs is a distance matrix: one fused pass over n * n * h numbers with no temporary of that size.

    Args:
        head: as in :class:`RelationConfig`.
        items: (M, N, h) for the utility head, else (M, N, 2 h): what each architecture adds as first and as second.
        weight: (M, h), of the last layer.
        bias: (M,), of the concat head.
    """

    def __init__(self, head: Head, items: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        self.head, self.members, self.count = head, items.shape[0], items.shape[1]
        self.temperature = 1.0
        self._bias = bias
        width = weight.shape[1]
        self._scores: Tensor | None = None
        if head == "utility":
            self._scores = torch.einsum("mnh,mh->mn", F.relu(items), weight)
            return
        first, second = items[..., :width], items[..., width:]
        self._half = [0.5 * torch.einsum("mnh,mh->mn", side, weight) for side in (first, second)]
        size = weight.abs().unsqueeze(1)
        # (positive, negative) parts of each member, those of the second one negated for the distance
        self._parts: list[list[tuple[Tensor, Tensor]]] = [
            [
                ((first * size)[m][:, chosen].contiguous(), -(second * size)[m][:, chosen].contiguous())
                for chosen in (weight[m] > 0, weight[m] < 0)
            ]
            for m in range(self.members)
        ]

    def __len__(self) -> int:
        return self.count

    def _raw(self, member: int, rows: Tensor | slice, columns: Tensor | slice) -> Tensor:
        """Return g(row, column) of one member."""
        (plus_a, plus_b), (minus_a, minus_b) = self._parts[member]
        raw = torch.cdist(plus_a[rows], plus_b[columns], p=1.0)
        raw -= torch.cdist(minus_a[rows], minus_b[columns], p=1.0)
        raw *= 0.5
        raw += self._half[0][member, rows].unsqueeze(1)
        raw += self._half[1][member, columns].unsqueeze(0)
        return raw if self._bias is None else raw.add_(self._bias[member])

    def _probability(self, member: int, rows: Tensor | slice, columns: Tensor | slice) -> Tensor:
        """Return probabilities minus a half, antisymmetric."""
        scale = 0.5 / self.temperature
        if self._scores is not None:
            scores = self._scores[member]
            return torch.tanh_((scores[rows].unsqueeze(1) - scores[columns].unsqueeze(0)).mul_(scale)).mul_(0.5)
        there = self._raw(member, rows, columns)
        whole = rows == columns if isinstance(rows, slice) and isinstance(columns, slice) else False
        back = there if whole else self._raw(member, columns, rows)
        if self.head == "antisym":
            return torch.tanh_((there - back.T).mul_(scale)).mul_(0.5)
        # symmetrised: (p_ij + 1 - p_ji) / 2
        there, back = torch.tanh(there * scale), torch.tanh(back.T * scale)
        return (there - back).mul_(0.25)

    def __call__(self, rows: Tensor | slice, columns: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation over members, (R, C) each, that a row beats a column.

        Args:
            rows, columns: long tensors of places, or slices.
        """
        mean = self._probability(0, rows, columns)
        square = torch.zeros_like(mean)
        for member in range(1, self.members):  # Welford
            p = self._probability(member, rows, columns)
            delta = p - mean
            mean = mean + delta / (member + 1)
            square.addcmul_(delta, p.sub_(mean))
        return mean + 0.5, (square / self.members).clamp_min_(0).sqrt_()

    def matrix(self, max_pairs: int = MAX_PAIRS) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation (N, N).

        Raises:
            DataError: if that is more than ``max_pairs`` pairs.
        """
        if self.count**2 > max_pairs:
            raise DataError(
                f"{self.count} architectures make {self.count**2} pairs, more than {max_pairs}",
                hint="rank them by top_k, which reads relations in blocks",
            )
        return self(slice(None), slice(None))

    def member_scores(self, member: int, references: Tensor, block: int = 4096) -> Tensor:
        """Return one member's mean probability (N,) of beating the references: a Thompson sample of the ranking."""
        parts = [
            self._probability(member, slice(start, start + block), references).mean(1) + 0.5
            for start in range(0, self.count, block)
        ]
        return torch.cat(parts) if parts else torch.zeros(0)

    def inconsistency(self, block: int = 1024) -> float:
        """Return the share of pairs called the same way round in both orders; 0 but for the concat head."""
        if self.head != "concat" or self.count < 2:
            return 0.0
        same = 0
        for member in range(self.members):
            for start in range(0, self.count, block):
                rows = slice(start, min(start + block, self.count))
                there = self._raw(member, rows, slice(None)) > 0
                back = self._raw(member, slice(None), rows).T > 0
                equal = there == back
                equal[torch.arange(len(equal)), torch.arange(rows.start, rows.stop)] = False
                same += int(equal.sum())
        return same / (self.members * self.count * (self.count - 1))
