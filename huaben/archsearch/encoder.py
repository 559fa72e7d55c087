"""A graph network over architectures, for several ensemble members at once.

Every weight has a leading member axis, so the members of an ensemble are one batched computation: graphs of eight nodes
are far too small to keep a core busy one network at a time.

Shape letters: M members, N architectures, n nodes, f node features, e extra features, w width.

Source: Arch-Graph (arXiv:2204.05941) encodes architectures by a graph convolutional network; depth, width and read-out
are not given in what could be read of it and are ours. ``readout="global"`` with one direction is BRP-NAS's
(arXiv:2007.08668).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ShapeError
from .graphs import GraphBatch


@dataclass(frozen=True, slots=True, eq=False)
class PreparedGraphs:
    """A batch with its adjacency normalised once, ready to be encoded many times.

    Attributes:
        nodes: (N, n, f).
        along: (N or 1, n, n), row-normalised, self loops added: each node gathers from those that feed it.
        against: the same against the data flow.
        mask: (N, n, 1), 1 at real nodes.
        output: index of the output node.
        extra: (N, e).
    """

    nodes: Tensor
    along: Tensor
    against: Tensor
    mask: Tensor
    output: int
    extra: Tensor

    @classmethod
    def of(cls, graphs: GraphBatch, readout: Literal["mean_output", "global"] = "mean_output") -> Self:
        """Normalise the adjacency of ``graphs``; a global node is added where the read-out asks for one."""
        if readout == "global":
            graphs = graphs.with_global_node()
        adjacency = graphs.adjacency
        mask = graphs.mask
        if len(graphs) > 1 and adjacency.stride(0) == 0 and bool((mask == mask[:1]).all()):
            adjacency, valid = adjacency[:1], mask[:1]  # one adjacency for all
        else:
            valid = mask
        loops = torch.diag_embed(valid.to(adjacency.dtype))
        along, against = adjacency.transpose(1, 2) + loops, adjacency + loops
        return cls(
            nodes=graphs.nodes,
            along=along / along.sum(2, keepdim=True).clamp_min(1),
            against=against / against.sum(2, keepdim=True).clamp_min(1),
            mask=mask.unsqueeze(2).to(graphs.nodes.dtype),
            output=graphs.output,
            extra=graphs.extra,
        )

    def __len__(self) -> int:
        return len(self.nodes)

    def take(self, index: Tensor) -> PreparedGraphs:
        """Return the graphs at ``index``: (K,), or (M, K) for a choice of its own for every member."""
        shared = len(self.along) == 1 and len(self.nodes) != 1
        spread = (1,) * (index.ndim - 1)
        return PreparedGraphs(
            nodes=self.nodes[index],
            along=self.along.reshape(*spread, *self.along.shape) if shared else self.along[index],
            against=self.against.reshape(*spread, *self.against.shape) if shared else self.against[index],
            mask=self.mask[index],
            output=self.output,
            extra=self.extra[index],
        )


class MemberLinear(nn.Module):
    """``members`` linear layers side by side: (M, ..., in) to (M, ..., out), or (1, ..., in) for a shared input."""

    def __init__(self, members: int, size_in: int, size_out: int, generator: torch.Generator, *, bias: bool) -> None:
        super().__init__()
        bound = 1 / math.sqrt(max(size_in, 1))
        weight = torch.empty(members, size_in, size_out).uniform_(-bound, bound, generator=generator)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(members, 1, size_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        members, _, size_out = self.weight.shape
        flat = x.reshape(x.shape[0], x.shape[1:-1].numel(), x.shape[-1]).expand(members, -1, -1)
        y = torch.bmm(flat, self.weight) if self.bias is None else torch.baddbmm(self.bias, flat, self.weight)
        return y.view(members, *x.shape[1:-1], size_out)


class GraphEncoder(nn.Module):
    """Graph convolutions ``H' = ReLU(LayerNorm([A_f H ; A_b H] W))`` and a read-out.

    ``A_f`` and ``A_b`` are the row-normalised adjacency with self loops along and against the data flow.

    Args:
        node_size: f.
        extra_size: e.
        layers, width: of the convolutions.
        members: M.
        directions: "both", or "along" the data flow only.
        readout: "mean_output": mean over the nodes beside the output node; "global": a node fed by all others.
        dropout: share of channels dropped after each layer while training. One mask for all nodes of a graph: eight
            times fewer random numbers, and a channel cannot leak back from the neighbouring node.
        generator: of the initial weights.
    """

    def __init__(
        self,
        node_size: int,
        extra_size: int,
        *,
        layers: int,
        width: int,
        members: int,
        directions: Literal["both", "along"],
        readout: Literal["mean_output", "global"],
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.node_size, self.extra_size, self.width, self.members = node_size, extra_size, width, members
        self.readout: Literal["mean_output", "global"] = readout
        self.dropout = dropout
        self.sides = 2 if directions == "both" else 1
        sizes = [node_size + (readout == "global"), *[width] * layers]
        self.layers = nn.ModuleList(
            MemberLinear(members, size_in, self.sides * width, generator, bias=False) for size_in in sizes[:-1]
        )
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(members, 1, 1, width)) for _ in range(layers))
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, 1, width)) for _ in range(layers))

    @property
    def embedding_size(self) -> int:
        """The number of values per architecture."""
        return (self.width if self.readout == "global" else 2 * self.width) + self.extra_size

    def prepare(self, graphs: GraphBatch) -> PreparedGraphs:
        """Return ``graphs`` normalised for this encoder.

        Raises:
            ShapeError: if they have other features than those it was built for.
        """
        if graphs.num_features != self.node_size or graphs.num_extra != self.extra_size:
            raise ShapeError(
                f"graphs have {graphs.num_features} node and {graphs.num_extra} extra features,"
                f" the encoder expects {self.node_size} and {self.extra_size}",
                hint="encode all architectures by one search space and with the same extra features",
            )
        return PreparedGraphs.of(graphs, self.readout)

    def forward(self, graphs: PreparedGraphs, generator: torch.Generator | None = None) -> Tensor:
        """Return embeddings (M, N, embedding_size).

        Args:
            graphs: N graphs for all members, or (M, K) chosen for each (:meth:`PreparedGraphs.take`).
            generator: of the dropout masks; None drops nothing.
        """
        lead = 0 if graphs.nodes.ndim == 4 else 1
        nodes, along, against, mask, extra = (
            x.unsqueeze(0) if lead else x
            for x in (graphs.nodes, graphs.along, graphs.against, graphs.mask, graphs.extra)
        )
        hidden = nodes
        for layer, scale, shift in zip(self.layers, self.scales, self.shifts, strict=True):
            mixed = layer(hidden)  # (M, N, n, sides * w)
            hidden = torch.matmul(along, mixed[..., : self.width])
            if self.sides == 2:
                hidden = hidden + torch.matmul(against, mixed[..., self.width :])
            hidden = F.relu(F.layer_norm(hidden, (self.width,)) * scale + shift)
            if generator is not None and self.dropout > 0:
                keep = torch.empty(*hidden.shape[:2], 1, self.width).bernoulli_(1 - self.dropout, generator=generator)
                hidden = hidden * (keep / (1 - self.dropout))
        output = hidden[..., graphs.output, :]
        parts = [output]
        if self.readout == "mean_output":
            parts.insert(0, (hidden * mask).sum(2) / mask.sum(2).clamp_min(1))
        if self.extra_size:
            parts.append(extra.expand(self.members, -1, -1))
        return torch.cat(parts, dim=-1) if len(parts) > 1 else output


def embed_in_blocks(encoder: GraphEncoder, graphs: GraphBatch, block: int = 2048) -> Tensor:
    """Return embeddings (M, N, embedding_size) without gradients, ``block`` architectures at a time."""
    prepared = encoder.prepare(graphs)
    with torch.no_grad():
        rows = [
            encoder(prepared.take(torch.arange(start, min(start + block, len(graphs)))))
            for start in range(0, len(graphs), block)
        ]
    if not rows:
        return torch.zeros(encoder.members, 0, encoder.embedding_size)
    return torch.cat(rows, dim=1)


def as_float32(values: object) -> Tensor:
    """Return numbers as a float32 tensor on the CPU."""
    return torch.as_tensor(np.asarray(values, dtype=np.float32))
