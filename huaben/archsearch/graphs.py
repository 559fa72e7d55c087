"""Architectures as padded batches of labelled graphs, the form that graph networks read.

Shape letters: N architectures, n nodes, f features of a node, e extra features of an architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..errors import ShapeError


@dataclass(frozen=True, slots=True, eq=False)
class GraphBatch:
    """A batch of graphs over the same number of nodes.

    Attributes:
        nodes: float32 (N, n, f), features; the first ones are the one-hot label.
        adjacency: float32 (N, n, n); 1 at ``[i, j]`` where node i feeds node j, no self loops. It may be a broadcast
            view (all graphs of one cell space share it), so copy before writing into it.
        mask: bool (N, n), False at padding, whose rows and columns of ``adjacency`` are 0.
        output: index of the node that every graph ends in.
        extra: float32 (N, e), features of whole architectures (log parameters, ...); e may be 0.

    Raises:
        ShapeError: where the shapes do not fit each other.
    """

    nodes: Tensor
    adjacency: Tensor
    mask: Tensor
    output: int
    extra: Tensor

    def __post_init__(self) -> None:
        count, size = self.nodes.shape[:2]
        fits = (
            self.nodes.ndim == 3
            and self.adjacency.shape == (count, size, size)
            and self.mask.shape == (count, size)
            and self.extra.ndim == 2
            and len(self.extra) == count
            and 0 <= self.output < size
        )
        if not fits:
            shapes = ", ".join(str(tuple(t.shape)) for t in (self.nodes, self.adjacency, self.mask, self.extra))
            raise ShapeError(
                f"nodes, adjacency, mask, extra are {shapes} with output node {self.output}",
                hint="expected (N, n, f), (N, n, n), (N, n), (N, e) and 0 <= output < n",
            )

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def num_nodes(self) -> int:
        return self.nodes.shape[1]

    @property
    def num_features(self) -> int:
        return self.nodes.shape[2]

    @property
    def num_extra(self) -> int:
        return self.extra.shape[1]

    def take(self, index: Sequence[int] | np.ndarray | Tensor) -> GraphBatch:
        """Return the graphs at ``index`` (integers, or booleans of length N), in that order."""
        rows = torch.as_tensor(np.asarray(index) if not isinstance(index, Tensor) else index, device=self.nodes.device)
        if rows.numel() == 0:
            rows = rows.long()
        if rows.dtype == torch.bool:
            if rows.shape != (len(self),):
                raise ShapeError(f"a mask of shape {tuple(rows.shape)} cannot select from {len(self)} graphs")
            rows = rows.nonzero().flatten()
        shared = self.adjacency.stride(0) == 0 and len(self) > 0  # one adjacency for all: keep it a view
        adjacency = (
            self.adjacency[:1].expand(len(rows), -1, -1) if shared else self.adjacency.index_select(0, rows.long())
        )
        rows = rows.long()
        return replace(self, nodes=self.nodes[rows], adjacency=adjacency, mask=self.mask[rows], extra=self.extra[rows])

    def to(self, device: str | torch.device) -> GraphBatch:
        """Return the batch on another device."""
        return replace(
            self,
            nodes=self.nodes.to(device),
            adjacency=self.adjacency.to(device),
            mask=self.mask.to(device),
            extra=self.extra.to(device),
        )

    def with_extra(self, extra: np.ndarray | Tensor) -> GraphBatch:
        """Return the batch with ``extra`` (N, e) appended to the architectures' features.

        Raises:
            ShapeError: unless it is (N, e).
        """
        added = torch.as_tensor(extra, dtype=torch.float32, device=self.nodes.device)
        if added.ndim != 2 or len(added) != len(self):
            raise ShapeError(f"extra features are {tuple(added.shape)}, expected ({len(self)}, e)")
        return replace(self, extra=torch.cat([self.extra, added], dim=1))

    def with_global_node(self) -> GraphBatch:
        """Return the batch with one more node, last, fed by every other one; ``output`` points to it.

        Its label is a feature of its own, so f grows by one. Source: BRP-NAS (arXiv:2007.08668), read-out by a global
        node.
        """
        count, size, width = self.nodes.shape
        nodes = self.nodes.new_zeros(count, size + 1, width + 1)
        nodes[:, :size, :width] = self.nodes
        nodes[:, size, width] = 1
        adjacency = self.adjacency.new_zeros(count, size + 1, size + 1)
        adjacency[:, :size, :size] = self.adjacency
        adjacency[:, :size, size] = self.mask.to(adjacency.dtype)
        mask = torch.cat([self.mask, self.mask.new_ones(count, 1)], dim=1)
        return replace(self, nodes=nodes, adjacency=adjacency, mask=mask, output=size)

    def relabel(self, order: Sequence[int]) -> GraphBatch:
        """Return the same graphs with node ``order[k]`` moved to place k.

        Raises:
            ShapeError: unless ``order`` is a permutation of the nodes.
        """
        if sorted(order) != list(range(self.num_nodes)):
            raise ShapeError(f"order={list(order)} is not a permutation of {self.num_nodes} nodes")
        places = torch.as_tensor(list(order), device=self.nodes.device)
        return replace(
            self,
            nodes=self.nodes[:, places],
            adjacency=self.adjacency[:, places][:, :, places],
            mask=self.mask[:, places],
            output=list(order).index(self.output),
        )


def one_hot(codes: np.ndarray, width: int) -> np.ndarray:
    """Return float32 (..., width) with 1 at ``codes`` (integers below ``width``)."""
    return np.eye(width, dtype=np.float32)[codes]
