"""What a task looks like to a frozen probe network: its data, its output head, and the probe's Fisher information.

Source: Task2Vec (Achille et al., ICCV 2019); its reference code covers single-label and Bernoulli outputs.
Differs: the Gaussian, Laplace, per-pixel and jigsaw heads are ours.

Shape letters: N samples, D feature width, K outputs, P places (pixels of the feature map, or tokens).
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ..errors import ConfigError, DataError, ShapeError

Likelihood = Literal["classification", "multilabel", "regression", "laplace", "segmentation", "jigsaw"]
LIKELIHOODS: tuple[Likelihood, ...] = (
    "classification",
    "multilabel",
    "regression",
    "laplace",
    "segmentation",
    "jigsaw",
)
IGNORED = -100
"""Label of a place of a segmentation target that does not count."""

Predict = Callable[[dict[str, Tensor], Tensor, Tensor | None], Tensor]
"""Probe weights, inputs (N, ...) and mask to the head's outputs (N, K) or (N, K, P)."""


@dataclass(frozen=True, slots=True, eq=False)
class TaskData:
    """Samples of a task.

    Attributes:
        name: of the task.
        inputs: what the probe takes: float (N, C, H, W) pictures, int64 (N, L) tokens, or, for "jigsaw", float
            (N, tiles, C, H, W) pieces in shuffled order.
        targets: by ``likelihood``; "classification" and "jigsaw" int64 (N,), "multilabel" 0/1 (N, K),
            "segmentation" int64 (N, H, W) or (N, L) with ``IGNORED`` where nothing counts, "regression" (Gaussian)
            and "laplace" (targets judged by L1 or SSIM) float (N,), (N, K) or dense (N, K, H, W).
        likelihood: of the targets given the outputs.
        num_classes: for "classification", "segmentation" and "jigsaw".
        mask: bool (N, L), True at real tokens; None if all are.
        kind: of task, for the embedding's type; None to follow from ``likelihood``.

    Raises:
        ConfigError: for an unknown likelihood or too few classes.
        ShapeError: for targets or mask of another shape.
        DataError: for labels out of range, numbers that are not finite, or fewer than two samples.
    """

    name: str
    inputs: Tensor
    targets: Tensor
    likelihood: Likelihood
    num_classes: int = 0
    mask: Tensor | None = None
    kind: Literal["classification", "dense", "regression", "self-supervised"] | None = None

    def __post_init__(self) -> None:
        where = f"task {self.name!r}"
        if self.likelihood not in LIKELIHOODS:
            raise ConfigError(f"{where}: likelihood={self.likelihood!r} is none of {', '.join(LIKELIHOODS)}")
        count = len(self.inputs)
        if len(self.targets) != count or count < 2:
            raise DataError(
                f"{where}: {count} inputs and {len(self.targets)} targets", hint="expected as many, 2 or more"
            )
        for what, tensor in (("inputs", self.inputs), ("targets", self.targets)):
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                bad = int(
                    (~torch.isfinite(tensor))
                    .flatten(1 if tensor.ndim > 1 else 0)
                    .reshape(count, -1)
                    .any(1)
                    .nonzero()[0]
                )
                raise DataError(f"{where}: {what} of sample {bad} are not finite")
        ndims = {"classification": (1,), "jigsaw": (1,), "multilabel": (2,), "segmentation": (2, 3)}.get(
            self.likelihood, (1, 2, 4)
        )
        if self.targets.ndim not in ndims:
            raise ShapeError(
                f"{where}: targets are {tuple(self.targets.shape)}, a {self.likelihood} target has"
                f" {' or '.join(map(str, ndims))} dimensions"
            )
        if self.likelihood == "jigsaw" and self.inputs.ndim != 5:
            raise ShapeError(f"{where}: jigsaw inputs are {tuple(self.inputs.shape)}, expected (N, tiles, C, H, W)")
        if self.mask is not None and self.mask.shape != self.inputs.shape[:2]:
            raise ShapeError(f"{where}: mask is {tuple(self.mask.shape)}, expected {tuple(self.inputs.shape[:2])}")
        if self.likelihood in ("classification", "jigsaw", "segmentation"):
            self._check_labels(where)
        elif not self.targets.is_floating_point():
            raise DataError(f"{where}: {self.likelihood} targets are {self.targets.dtype}, expected floating point")
        elif self.likelihood == "multilabel" and not ((self.targets == 0) | (self.targets == 1)).all():
            raise DataError(f"{where}: multilabel targets are not all 0 or 1")

    def _check_labels(self, where: str) -> None:
        if self.num_classes < 2:
            raise ConfigError(f"{where}: num_classes={self.num_classes}, expected at least 2")
        if self.targets.is_floating_point() or self.targets.dtype == torch.bool:
            raise DataError(f"{where}: labels are {self.targets.dtype}, expected whole numbers")
        ignored = (self.targets == IGNORED) if self.likelihood == "segmentation" else torch.zeros(())
        wrong = ((self.targets < 0) | (self.targets >= self.num_classes)) & ~ignored.bool()
        if wrong.any():
            found = int(self.targets[wrong][0])
            raise DataError(f"{where}: label {found} is none of 0 to {self.num_classes - 1}")

    @property
    def is_dense(self) -> bool:
        """Whether there is a target at every place."""
        return self.likelihood == "segmentation" or self.targets.ndim == 4

    @property
    def num_outputs(self) -> int:
        if self.likelihood in ("classification", "jigsaw", "segmentation"):
            return self.num_classes
        return 1 if self.targets.ndim == 1 else self.targets.shape[1]

    def group(self) -> str:
        """Return the type of task."""
        if self.kind is not None:
            return self.kind
        if self.likelihood == "jigsaw":
            return "self-supervised"
        if self.is_dense:
            return "dense"
        return "classification" if self.likelihood in ("classification", "multilabel") else "regression"

    def first(self, count: int) -> TaskData:
        """Return the first ``count`` samples."""
        if count >= len(self.inputs):
            return self
        return TaskData(
            name=self.name,
            inputs=self.inputs[:count],
            targets=self.targets[:count],
            likelihood=self.likelihood,
            num_classes=self.num_classes,
            mask=None if self.mask is None else self.mask[:count],
            kind=self.kind,
        )

    def content(self) -> str:
        """Return a hash of everything but the name."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{self.likelihood} {self.num_classes} {self.kind}".encode())
        for tensor in (self.inputs, self.targets, self.mask):
            if tensor is not None:
                array = np.ascontiguousarray(tensor.detach().cpu().numpy())
                digest.update(f"{array.dtype} {array.shape}".encode())
                digest.update(array.tobytes())
        return digest.hexdigest()


def feature_maps(probe: nn.Module, weights: dict[str, Tensor], inputs: Tensor, mask: Tensor | None) -> Tensor:
    """Return the probe's features as (N, D, P), or (N, D) from a probe that pools by itself."""
    arguments = (inputs,) if mask is None or not _takes_mask(probe) else (inputs, mask)
    found = functional_call(probe, weights, arguments)
    if found.ndim == 4:
        return found.flatten(2)
    if found.ndim == 3:
        return found.transpose(1, 2)
    if found.ndim == 2:
        return found
    raise ShapeError(f"the probe returns {tuple(found.shape)}, expected (N, D), (N, L, D) or (N, D, h, w)")


def _takes_mask(probe: nn.Module) -> bool:
    return len(inspect.signature(probe.forward).parameters) > 1


def task_features(
    probe: nn.Module, weights: dict[str, Tensor], data: TaskData, inputs: Tensor, mask: Tensor | None
) -> Tensor:
    """Return what the head of a task reads: (N, D, P) for dense tasks, else pooled (N, D); tiles side by side.

    Raises:
        ShapeError: if a dense task meets a probe that pools.
    """
    if data.likelihood == "jigsaw":
        maps = feature_maps(probe, weights, inputs.flatten(0, 1), None)
        pooled = maps.mean(dim=2) if maps.ndim == 3 else maps
        return pooled.unflatten(0, inputs.shape[:2]).flatten(1)
    maps = feature_maps(probe, weights, inputs, mask)
    if data.is_dense:
        if maps.ndim != 3:
            raise ShapeError(f"task {data.name!r} has a target at every place, but the probe pools its features")
        return maps
    if maps.ndim == 2:
        return maps
    if mask is None:
        return maps.mean(dim=2)
    share = mask.to(maps.dtype)[:, None]
    return (maps * share).sum(dim=2) / share.sum(dim=2).clamp_min(1)


def head_targets(probe: nn.Module, weights: dict[str, Tensor], data: TaskData) -> Tensor:
    """Return the targets as the head's outputs are compared with them.

    Labels stay (N,); numbers become (N, K); dense targets move to the places of the feature map: the nearest label
    (N, P), the mean of numbers (N, K, P). Numbers are standardised per output, since the likelihoods have unit scale.

    Raises:
        ShapeError: for dense targets that do not fit the probe's features.
    """
    targets = data.targets
    if data.is_dense:
        mask = None if data.mask is None else data.mask[:1]
        with torch.no_grad():
            arguments = (data.inputs[:1],) if mask is None or not _takes_mask(probe) else (data.inputs[:1], mask)
            shape = tuple(functional_call(probe, weights, arguments).shape)
        places = shape[2:] if len(shape) == 4 else shape[1:2]
        if len(places) != targets.ndim - (1 if data.likelihood == "segmentation" else 2):
            raise ShapeError(
                f"task {data.name!r}: targets {tuple(targets.shape)} do not fit the probe's features {shape}",
                hint="a picture probe returns (N, D, h, w), a text probe (N, L, D)",
            )
        if len(places) == 1 and targets.shape[1:] != places:
            raise ShapeError(f"task {data.name!r}: {targets.shape[1]} labels for {places[0]} tokens")
        targets = place_targets(data, places)
    if data.likelihood in ("regression", "laplace"):
        numbers = targets.float() if targets.ndim > 1 else targets.float()[:, None]
        axes = (0, 2) if numbers.ndim == 3 else (0,)
        spread = numbers.std(dim=axes, keepdim=True, correction=0)
        return (numbers - numbers.mean(dim=axes, keepdim=True)) / torch.where(spread > 0, spread, 1.0)
    return targets.float() if data.likelihood == "multilabel" else targets.long()


def place_targets(data: TaskData, map_shape: Sequence[int]) -> Tensor:
    """Return dense targets at the places of the feature map: (N, P) labels or (N, K, P) numbers."""
    if data.likelihood == "segmentation":
        labels = data.targets
        if labels.ndim == 3:
            labels = F.interpolate(labels[:, None].float(), size=list(map_shape), mode="nearest")[:, 0].long()
        elif data.mask is not None:
            labels = labels.masked_fill(~data.mask, IGNORED)
        return labels.flatten(1)
    return F.adaptive_avg_pool2d(data.targets.float(), (map_shape[0], map_shape[1])).flatten(2)


def log_likelihood(data: TaskData, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return (N,): log density of the targets given the outputs, up to a constant.

    Sums over outputs; dense targets are averaged over the places that count. Gaussian and Laplace noise have unit
    scale.
    """
    if data.likelihood in ("classification", "jigsaw"):
        return outputs.log_softmax(dim=1).gather(1, targets[:, None])[:, 0]
    if data.likelihood == "multilabel":
        return -F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").sum(dim=1)
    if data.likelihood == "segmentation":
        counts = targets != IGNORED
        chosen = outputs.log_softmax(dim=1).gather(1, targets.clamp_min(0)[:, None])[:, 0]
        return (chosen * counts).sum(dim=1) / counts.sum(dim=1).clamp_min(1)
    gap = targets - outputs
    each = -0.5 * gap.square() if data.likelihood == "regression" else -gap.abs()
    return each.sum(dim=1).mean(dim=1) if each.ndim == 3 else each.sum(dim=1)


def sample_targets(data: TaskData, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
    """Draw targets from the model's own distribution; places that do not count in ``targets`` stay so."""
    if data.likelihood in ("classification", "jigsaw"):
        return torch.multinomial(outputs.softmax(dim=1), 1, generator=generator)[:, 0]
    if data.likelihood == "multilabel":
        return torch.bernoulli(outputs.sigmoid(), generator=generator)
    if data.likelihood == "segmentation":
        flat = outputs.softmax(dim=1).transpose(1, 2).flatten(0, 1)  # N*P K
        drawn = torch.multinomial(flat, 1, generator=generator).view(len(outputs), -1)
        return torch.where(targets == IGNORED, targets, drawn)
    if data.likelihood == "regression":
        return outputs + torch.randn(outputs.shape, generator=generator)
    uniform = torch.rand(outputs.shape, generator=generator).clamp(1e-7, 1 - 1e-7) - 0.5
    return outputs - uniform.sign() * torch.log1p(-2 * uniform.abs())


def filters_of(probe: nn.Module, *, norms: bool, exclude: Collection[str]) -> dict[str, int]:
    """Return the names of the weights that count, with the axis that numbers their filters.

    Every weight of two or more dimensions but embedding tables; with ``norms`` the scales of normalisations, too.

    Args:
        probe: the network.
        norms: whether scales count.
        exclude: names of submodules that do not, such as a classifier left in.
    """
    found: dict[str, int] = {}
    for prefix, module in probe.named_modules():
        if any(prefix == name or prefix.startswith(f"{name}.") for name in exclude):
            continue
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            continue
        for name, parameter in module.named_parameters(prefix, recurse=False):
            scale = parameter.ndim == 1 and "Norm" in type(module).__name__ and name.endswith("weight")
            if parameter.ndim >= 2 or (norms and scale):
                found[name] = 1 if isinstance(module, nn.modules.conv._ConvTransposeNd) else 0
    return found


def diagonal_fisher(
    predict: Predict,
    weights: dict[str, Tensor],
    filters: dict[str, int],
    data: TaskData,
    targets: Tensor,
    *,
    generator: torch.Generator,
    batch: int = 32,
    passes: int = 1,
    per_sample: Literal["vmap", "loop"] = "vmap",
) -> np.ndarray:
    """Return float64 (number of filters,): ``E_x E_{y~p(y|x)} (d log p(y|x) / dw)^2``, averaged within each filter.

    Args:
        predict: probe and head.
        weights: all of the probe's parameters and buffers.
        filters: from :func:`filters_of`.
        data: the samples.
        targets: at the head's places, only to know which count.
        generator: of the sampled targets.
        batch: samples at a time.
        passes: Monte-Carlo draws of the targets per sample.
        per_sample: gradients of single samples all at once ("vmap"), or one by one for probes that vmap cannot trace.

    Source: Task2Vec (Achille et al., ICCV 2019), section 2; labels are sampled from the model, never the true ones.
    """
    chosen = {name: weights[name] for name in filters}
    others = {name: tensor for name, tensor in weights.items() if name not in filters}
    sums = {name: torch.zeros(chosen[name].shape[axis], dtype=torch.float64) for name, axis in filters.items()}

    def score(part: dict[str, Tensor], x: Tensor, mask: Tensor | None, y: Tensor) -> Tensor:
        outputs = predict({**others, **part}, x[None], None if mask is None else mask[None])
        return log_likelihood(data, outputs, y[None])[0]

    one = grad(score)
    many = vmap(one, in_dims=(None, 0, 0 if data.mask is not None else None, 0))
    for _ in range(passes):
        for start in range(0, len(data.inputs), batch):
            x = data.inputs[start : start + batch]
            mask = None if data.mask is None else data.mask[start : start + batch]
            with torch.no_grad():
                y = sample_targets(data, predict(weights, x, mask), targets[start : start + batch], generator)
            if per_sample == "vmap":
                gradients = many(chosen, x, mask, y)
            else:
                parts = [one(chosen, x[i], None if mask is None else mask[i], y[i]) for i in range(len(x))]
                gradients = {name: torch.stack([part[name] for part in parts]) for name in chosen}
            for name, axis in filters.items():
                square = gradients[name].detach().double().square().movedim(1 + axis, 1)
                sums[name] += square.flatten(2).mean(dim=2).sum(dim=0) if square.ndim > 2 else square.sum(dim=0)
    total = torch.cat([sums[name] for name in filters]) / (passes * len(data.inputs))
    return total.numpy()
