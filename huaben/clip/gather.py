"""Features of all processes, with gradients: what contrastive losses of several processes compute on.

Every process computes its loss on the features of all. ``gather_features`` carries the gradient of every process's loss
back to the process whose features they are. Where data-parallel training then averages gradients over W processes:

==================  ==============  ====================================================================
anchors             with gradient   gradient of the whole batch's loss
==================  ==============  ====================================================================
own rows            yes             exact: the mean of the processes' losses is the batch's loss
all rows            yes             exact: every process has the same loss
all rows            no              right direction, 1 / W of the length
own rows            no              wrong: a process's features never learn from the others' anchors
==================  ==============  ====================================================================
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import ShapeError


def world_size() -> int:
    """Return how many processes compute together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Return which of them this is; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def own_rows(count: int) -> slice:
    """Return where this process's ``count`` rows lie among the gathered ones."""
    return slice(process_rank() * count, (process_rank() + 1) * count)


def gather_features(tensor: Tensor, *, with_grad: bool = True) -> Tensor:
    """Return the rows of all processes, by rank; without a process group, the tensor itself.

    Args:
        tensor: (b, ...), of the same shape in every process.
        with_grad: whether the others' losses send gradients back here. Without, only this process's own rows of the
            result have a gradient, from its own loss; see the module for which losses may do so.

    Raises:
        ShapeError: for a tensor without rows.
    """
    if tensor.ndim < 1:
        raise ShapeError("a scalar, expected (rows, ...)", hint="add an axis")
    if world_size() == 1:
        return tensor
    if with_grad:
        return _Gather.apply(tensor)
    gathered = _all(tensor.detach())
    if not tensor.requires_grad:
        return gathered
    rows = own_rows(len(tensor))
    return torch.cat([gathered[: rows.start], tensor, gathered[rows.stop :]])


def gather_ids(ids: Tensor) -> Tensor:
    """Return the ids of all processes, by rank; whole numbers have no gradient."""
    return ids if world_size() == 1 else _all(ids)


def _all(tensor: Tensor) -> Tensor:
    tensor = tensor.contiguous()
    gathered = tensor.new_empty(world_size() * len(tensor), *tensor.shape[1:])
    dist.all_gather_into_tensor(gathered, tensor)
    return gathered


class _Gather(torch.autograd.Function):
    """Gathers forward; backward, sums all processes' gradients and keeps this one's rows."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        context.count = len(tensor)
        return _all(tensor)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        if dist.get_backend() == "nccl":
            mine = gradient.new_empty(context.count, *gradient.shape[1:])
            dist.reduce_scatter_tensor(mine, gradient)
            return mine
        gradient = gradient.clone()  # another consumer may hold the same tensor
        dist.all_reduce(gradient)
        return gradient[own_rows(context.count)]
