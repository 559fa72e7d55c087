"""Continue to train a dual encoder on the pairs it knows, with hard pairs mixed into every batch.

A batch holds seeds and, for each seed, ``hard_per_seed`` of its mined hard pairs. All of them take part in the
contrastive loss; the hard negative margin loss asks that no ordinary caption is closer to a seed's picture than its
hard pairs' captions are. Three arms are one recipe: ``partners="none"`` without ``margin`` is plain continued
training, with the same schedule, restarted, and the same number of pairs a step: the baseline of every claim.

Where several processes train (:mod:`.distributed`), each encodes its part of the batch, features are gathered with
their gradients, and the weights move as those of one process would.

Legend: B pairs a step, n seeds, p hard pairs a seed, B = n (1 + p), E width of the shared space.

Source: Wang et al. 2025 (arXiv:2305.05208), sections 3.2 and 3.3; Mu et al. 2021 (arXiv:2112.12750) for SLIP.
Differs: an epoch is counted in seeds, and no pair occurs twice in a batch; the released code trains with the
contrastive loss alone. SLIP's head reads what the image tower passes on to its projection where that is known (our own
CLIP), and the shared space's features elsewhere.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..clip.dataset import PairDataset
from ..clip.dual_encoder import DualEncoder, DualOutput, HuabenDualEncoder, encode_all_images, encode_all_texts
from ..clip.gather import gather_features, gather_ids, own_rows, world_size
from ..clip.hard_pairs import HardPairs
from ..clip.loss import contrastive_loss, nt_xent_loss, siglip_loss
from ..clip.margin import MarginAlarm, MarginConfig, hard_mask, hard_negative_margin_loss
from ..clip.retrieval import retrieval
from ..clip.sampler import HardPairBatchSampler
from ..errors import ConfigError, DataError
from ..rng import check_seed, numpy_stream, torch_stream
from ..training import FitConfig
from .distributed import num_processes
from .views import Augment, strong_view

NAME = "helip"
Objective = Literal["contrastive", "siglip", "slip"]
Partners = Literal["mined", "random", "none"]
RECALLS = (1, 5, 10)
HEAD_WIDTH, HEAD_OUT = 512, 128
ALARM_STOP, ALARM_STEPS = 0.45, 50


LOOKED_AT = MarginConfig(gamma=0.0)
"""Of batches with partners that are trained without the margin loss: its terms are logged all the same."""


@dataclass(frozen=True, slots=True)
class _Pairs:
    """What all processes hold of a step: unit features (B, E) of both kinds and ids (B,)."""

    image: Tensor
    text: Tensor
    ids: Tensor


def helip_fit(*, steps: int | None = None, **changes: Any) -> FitConfig:
    """Return how to continue: a learning rate far below the first training's, a short climb, a cosine fall to zero.

    Args:
        steps: length of the run, if known: the climb takes a twenty-fifth of it.
        changes: to any other field of :class:`~huaben.training.FitConfig`.
    """
    values: dict[str, Any] = {
        "learning_rate": 3e-4,
        "betas": (0.9, 0.98),
        "weight_decay": 0.02,
        "warmup_steps": 20 if steps is None else max(1, min(1000, steps // 25)),
        "grad_clip": 1.0,
        "ema_decay": 0.0,
        "decay": "cosine",
        "decay_share": 1.0,
        "lr_floor": 0.0,
        "log_every": 10,
    }
    return FitConfig(**(values | changes))


class HelipTraining(nn.Module):
    """The encoder, and what training needs beside it and the saved model does not."""

    def __init__(self, encoder: DualEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.head: nn.Module | None = None
        self.bias: nn.Parameter | None = None

    def image_states(self, pixels: Tensor) -> Tensor:
        """Return (B, D): what SLIP's head reads; see the module."""
        if isinstance(self.encoder, HuabenDualEncoder):
            return self.encoder.clip.image_tokens(pixels).mean(1)
        return self.encoder.encode_images(pixels)

    def forward(
        self, pixels: Tensor, tokens: Mapping[str, Tensor], first: Tensor | None = None, second: Tensor | None = None
    ) -> tuple[DualOutput, Tensor | None, Tensor | None]:
        """Return the pairs' features and, given two views of each picture, the head's output for both."""
        out: DualOutput = self.encoder(pixels, tokens)
        if self.bias is not None:
            out = DualOutput(out.image_features, out.text_features, out.logit_scale, self.bias)
        if self.head is None or first is None or second is None:
            return out, None, None
        projected = self.head(self.image_states(torch.cat([first, second])))
        return out, projected[: len(first)], projected[len(first) :]


class HelipRecipe:
    """Batches with hard pairs, and the losses on them; see the module.

    Args:
        encoder: gives the model to begin with; called once, and copied, so it may return a shared one.
        data: pairs to train on; row i of ``pairs`` belongs to pair i, matched by key where the lists have keys.
        pairs: mined hard pairs; needed by ``partners="mined"``.
        partners: what fills a batch beside its seeds: their mined hard pairs, random pairs (a control), or nothing.
        hard_per_seed: p.
        k_use: take partners from the first k_use of each list; the whole list by default.
        margin: of the hard negative margin loss; None leaves it out.
        objective: CLIP's loss, SigLIP's, or CLIP's and SimCLR's together. An encoder without a bias gets one for
            SigLIP's loss, fitted to the first batch and not saved.
        ssl_weight: of SimCLR's term.
        ssl_on_hard: whether partners' pictures take part in it.
        contrast: "all" pairs of the batch, or "seeds" alone, which leaves the partners to the margin loss.
        batch_size: B, over all processes.
        augment: changes a picture each time it is taken; None does not.
        ssl_augment: makes the two views of SimCLR's term.
        languages: captions to draw from; a pair's language is drawn first, then one of its captions.
        drop_outliers: never begin with pairs that mining flagged as mispaired; others may still draw them.
        drop_short: never begin with pairs whose lists are shorter than k_use, instead of refusing them.
        in_degree_cap: draw pairs that more lists than this name as many times less often.
        groups: (N,) a number per pair; equal numbers mean the same content and are never each other's negatives.
        alarm: stop where partners look random in the first 50 steps; False only warns.
        cache_mb: memory for decoded pictures; pictures beyond it are decoded each time.
        fit: how to train.
        seed: of batches, captions and augmentations.
        valid: pairs the finished model is scored on.

    Raises:
        ConfigError: if the parts do not fit each other.
        DataError: if the lists are of other pairs, or captions are missing.
    """

    def __init__(
        self,
        encoder: Callable[[], DualEncoder],
        data: PairDataset,
        *,
        pairs: HardPairs | None = None,
        partners: Partners = "mined",
        hard_per_seed: int = 1,
        k_use: int | None = None,
        margin: MarginConfig | None = None,
        objective: Objective = "contrastive",
        ssl_weight: float = 1.0,
        ssl_on_hard: bool = True,
        contrast: Literal["all", "seeds"] = "all",
        batch_size: int = 128,
        augment: Augment | None = None,
        ssl_augment: Augment = strong_view,
        languages: Sequence[str] = ("en", "zh"),
        drop_outliers: bool = False,
        drop_short: bool = False,
        in_degree_cap: int | None = None,
        groups: NDArray[np.int64] | None = None,
        alarm: bool = True,
        cache_mb: float = 1024.0,
        fit: FitConfig | None = None,
        seed: int = 0,
        valid: PairDataset | None = None,
    ) -> None:
        self.seed = check_seed(seed)
        self.fit = helip_fit(seed=seed) if fit is None else fit
        self.make_encoder, self.data, self.valid = encoder, data, valid
        self.partners, self.margin, self.objective, self.contrast = partners, margin, objective, contrast
        self.hard_per_seed = 0 if partners == "none" else hard_per_seed
        self.k_use, self.batch_size = k_use, batch_size
        self.ssl_weight, self.ssl_on_hard = ssl_weight, ssl_on_hard
        self.augment, self.ssl_augment = augment, ssl_augment
        self.languages, self.alarm, self.cache_mb = tuple(languages), alarm, cache_mb
        self.drop_outliers, self.drop_short, self.in_degree_cap = drop_outliers, drop_short, in_degree_cap
        self._check(hard_per_seed)
        self.pairs = self._matched(pairs)
        self.groups = self._checked_groups(groups)
        self._images: dict[int, NDArray[np.uint8]] = {}
        self._prepared: dict[int, Tensor] = {}
        self._cached_bytes = 0
        self._name: str | None = None
        self.watch: MarginAlarm | None = None
        self._masks: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor]] = {}

    def _check(self, hard_per_seed: int) -> None:
        """Check the settings against each other."""
        for name, value, known in (
            ("partners", self.partners, ("mined", "random", "none")),
            ("objective", self.objective, ("contrastive", "siglip", "slip")),
            ("contrast", self.contrast, ("all", "seeds")),
        ):
            if value not in known:
                raise ConfigError(f"{name}={value!r} is none of {', '.join(known)}", hint=f"use {known[0]!r}")
        if hard_per_seed < 1:
            raise ConfigError(f"hard_per_seed={hard_per_seed}, expected at least 1", hint="use partners='none'")
        if self.batch_size < 2 or self.batch_size % (1 + self.hard_per_seed):
            size = max(2, self.batch_size // (1 + self.hard_per_seed)) * (1 + self.hard_per_seed)
            raise ConfigError(
                f"batch_size={self.batch_size} does not hold whole groups of one seed and {self.hard_per_seed} "
                "partners",
                hint=f"use {size}",
            )
        if self.partners == "none" and (self.margin is not None or self.contrast == "seeds"):
            raise ConfigError(
                "the margin loss needs partners in the batch, partners='none' was given",
                hint="use partners='mined', or leave margin and contrast out",
            )
        if not self.ssl_weight >= 0:
            raise ConfigError(f"ssl_weight={self.ssl_weight} is negative", hint="use 1")
        if not self.languages:
            raise ConfigError("languages is empty", hint="use ('en', 'zh')")
        if self.batch_size > len(self.data):
            raise DataError(
                f"batch_size={self.batch_size} of {len(self.data)} pairs", hint="use a smaller batch or more pairs"
            )

    def _matched(self, pairs: HardPairs | None) -> HardPairs | None:
        """Return the lists in the order of the data."""
        if self.partners != "mined":
            return None
        if pairs is None:
            raise ConfigError("partners='mined' without mined pairs", hint="pass pairs, from huaben clip mine")
        if pairs.keys is not None:
            keys = self.data.keys()
            if list(pairs.keys) != keys:
                pairs = pairs.matched(keys)
        pairs.check(len(self.data))
        return pairs

    def _checked_groups(self, groups: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
        if groups is None:
            return None
        found = np.asarray(groups)
        if found.shape != (len(self.data),) or found.dtype.kind not in "iu":
            raise DataError(
                f"groups is a {found.dtype} array of shape {found.shape}, expected whole numbers ({len(self.data)},)",
                hint="give one number a pair",
            )
        return found.astype(np.int64)

    # -- what is trained -------------------------------------------------------------------------------------------

    @property
    def settings(self) -> dict[str, Any]:
        """What the run did, for its card."""
        return {
            "encoder": self.first.name,
            "data": self.data.name,
            "pairs": len(self.data),
            "fingerprint": self.fingerprint,
            "mined": None if self.pairs is None else dict(self.pairs.settings),
            "partners": self.partners,
            "hard_per_seed": self.hard_per_seed,
            "k_use": self.k_use,
            "margin": None if self.margin is None else self.margin.to_dict(),
            "objective": self.objective,
            "ssl_weight": self.ssl_weight if self.objective == "slip" else 0.0,
            "ssl_on_hard": self.ssl_on_hard,
            "contrast": self.contrast,
            "batch_size": self.batch_size,
            "augment": getattr(self.augment, "__name__", None if self.augment is None else "own"),
            "languages": list(self.languages),
            "drop_outliers": self.drop_outliers,
            "drop_short": self.drop_short,
            "in_degree_cap": self.in_degree_cap,
            "seed": self.seed,
        }

    @property
    def name(self) -> str:
        """A run goes on only with the same data, lists and losses: they are part of its name."""
        if self._name is None:
            key = {**self.settings, "mined": self._lists_digest()}
            digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:8]
            self._name = f"{NAME} {digest}"
        return self._name

    @name.setter
    def name(self, value: str) -> None:
        self._name = value

    @cached_property
    def fingerprint(self) -> str:
        """Of the data."""
        return self.data.fingerprint()

    def _lists_digest(self) -> str:
        if self.pairs is None:
            return ""
        lists = self.pairs.pairs
        some = np.ascontiguousarray(lists[:: max(1, len(lists) // 10_000)])
        return hashlib.sha256(some.tobytes()).hexdigest()[:16]

    @cached_property
    def first(self) -> DualEncoder:
        """The encoder to begin with; never trained itself."""
        return self.make_encoder()

    @cached_property
    def sampler(self) -> HardPairBatchSampler:
        """Rows of every step, for one process; :meth:`share` divides them."""
        hard: NDArray[Any] | Literal["random"] | None = None
        seeds: NDArray[Any] | None = None
        if self.partners == "random":
            hard = "random"
        elif self.pairs is not None:
            hard = self.pairs.pairs
            allowed = np.ones(len(self.data), bool)
            if self.drop_outliers:
                allowed &= ~np.asarray(self.pairs.outlier)
            if self.drop_short:
                allowed &= np.asarray(hard[:, (self.k_use or hard.shape[1]) - 1]) >= 0
            seeds = None if allowed.all() else allowed
        return HardPairBatchSampler(
            len(self.data),
            hard,
            batch_size=self.batch_size,
            hard_per_seed=max(1, self.hard_per_seed),
            k_use=None if self.pairs is None else self.k_use,
            seed=self.seed,
            seeds=seeds,
            in_degree_cap=None if self.pairs is None else self.in_degree_cap,
            ids=self.groups,
        )

    def build(self) -> HelipTraining:
        """Return a copy of the first encoder, with a head or a bias where the objective needs one."""
        self._check_captions()
        _ = self.sampler
        model = HelipTraining(copy.deepcopy(self.first).to("cpu").float())
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        if self.objective == "slip":
            model.head = self._head(model)
        if self.objective == "siglip" and self.first.logit_bias is None:
            model.bias = nn.Parameter(self._fitted_bias(model))
        if self.partners != "none":
            stops = self.alarm and (self.margin is not None or self.partners == "mined")
            self.watch = MarginAlarm(
                stop=ALARM_STOP if stops else None, window=ALARM_STEPS, hard_per_seed=self.hard_per_seed
            )
        return model

    @torch.no_grad()
    def _head(self, model: HelipTraining) -> nn.Module:
        """Return SimCLR's head; its weights depend on the seed alone."""
        width = model.image_states(self.first.prepare_images([self.data.image(0)])).shape[-1]
        layers: list[nn.Module] = [nn.Linear(width, HEAD_WIDTH), nn.GELU(), nn.Linear(HEAD_WIDTH, HEAD_OUT)]
        stream = torch_stream(self.seed, NAME, "head")
        for layer in layers:
            if isinstance(layer, nn.Linear):
                layer.weight.normal_(std=layer.in_features**-0.5, generator=stream)
                layer.bias.zero_()
        return nn.Sequential(*layers)

    @torch.no_grad()
    def _fitted_bias(self, model: HelipTraining) -> Tensor:
        """Return the bias with which as many pairs of the first batch are held to match as do."""
        batch = self._draw(0, np.arange(self.batch_size))
        model.eval()
        out = model.encoder(batch["pixels"], batch["tokens"])
        model.train()
        logits = (out.logit_scale * out.image_features @ out.text_features.T).double()
        low, high = -float(logits.max()) - 50, -float(logits.min()) + 50
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if float(torch.sigmoid(logits + middle).sum()) > len(logits) else (middle, high)
        return torch.tensor((low + high) / 2, dtype=torch.float32)

    def _check_captions(self) -> None:
        """Refuse data with pairs that say nothing in the languages asked for."""
        silent = [row for row in range(len(self.data)) if not self._sayings(row)]
        if silent:
            named = ", ".join(self.data.key(row) for row in silent[:3])
            raise DataError(
                f"{len(silent)} of {len(self.data)} pairs have no caption in {', '.join(self.languages)}: "
                f"{named}{', …' if len(silent) > 3 else ''}",
                hint="name the languages of your captions, or leave these pairs out",
            )

    def _sayings(self, row: int) -> list[list[str]]:
        """Return a pair's captions by language, without languages it does not have."""
        captions = self.data.captions(row)
        by_language = [[said.text for said in captions if said.language == language] for language in self.languages]
        return [texts for texts in by_language if texts]

    # -- batches ---------------------------------------------------------------------------------------------------

    def batch(self, step: int) -> dict[str, Any]:
        """Return one step's pairs, seeds first, then p partners of each seed in the same order.

        ``pixels`` (B, 3, S, S), ``tokens`` by name (B, L), ``ids`` (B,), ``step``, and for SimCLR's term ``first`` and
        ``second`` (B or n, 3, S, S). Where several processes train, only the step: :meth:`share` draws each one's part,
        so that none reads another's pictures.
        """
        if num_processes() > 1:
            return {"step": step}
        return self._draw(step, np.arange(self.batch_size))

    def share(self, batch: dict[str, Any], rank: int, processes: int) -> dict[str, Any]:
        """Return one process's seeds and their partners.

        Raises:
            ConfigError: if the seeds cannot be divided.
        """
        seeds, rest = divmod(self.num_seeds, processes)
        if rest or not seeds:
            raise ConfigError(
                f"{self.num_seeds} seeds a step cannot be divided among {processes} processes",
                hint=f"use batch_size={max(1, seeds) * processes * (1 + self.hard_per_seed)}",
            )
        p = self.hard_per_seed
        part = np.concatenate(
            [
                np.arange(rank * seeds, (rank + 1) * seeds),
                np.arange(self.num_seeds + rank * seeds * p, self.num_seeds + (rank + 1) * seeds * p),
            ]
        )
        if "pixels" not in batch:
            return self._draw(batch["step"], part)
        rows = torch.from_numpy(part)
        views = rows if self.ssl_on_hard else rows[:seeds]
        result = {
            "step": batch["step"],
            "ids": batch["ids"][rows],
            "pixels": batch["pixels"][rows],
            "tokens": {name: values[rows] for name, values in batch["tokens"].items()},
        }
        return result | {name: batch[name][views] for name in ("first", "second") if name in batch}

    @property
    def num_seeds(self) -> int:
        """How many of the pairs of a step are seeds."""
        return self.batch_size // (1 + self.hard_per_seed)

    def _draw(self, step: int, positions: NDArray[np.int64]) -> dict[str, Any]:
        """Return what stands at some positions of a step's batch; other positions change nothing."""
        rows = np.asarray(self.sampler.batch(step))[positions]
        rng = numpy_stream(self.seed, NAME, "batch", step)
        chances = rng.random((self.batch_size, 2))[positions]
        streams = rng.integers(2**63, size=(self.batch_size, 3))[positions]
        texts = [self._caption(int(row), *chance) for row, chance in zip(rows, chances.tolist(), strict=True)]
        batch: dict[str, Any] = {
            "step": step,
            "ids": torch.from_numpy(rows.astype(np.int64) if self.groups is None else self.groups[rows]),
            "pixels": self._pixels(rows.tolist(), self.augment, streams[:, 0]),
            "tokens": self.first.prepare_texts(texts),
        }
        if self.objective == "slip":
            count = len(rows) if self.ssl_on_hard else len(rows) // (1 + self.hard_per_seed)
            for which, name in enumerate(("first", "second"), 1):
                batch[name] = self._pixels(rows[:count].tolist(), self.ssl_augment, streams[:count, which])
        return batch

    def _caption(self, row: int, language: float, which: float) -> str:
        """Return a caption of a pair, chosen by two numbers of [0, 1)."""
        sayings = self._sayings(row)
        texts = sayings[int(language * len(sayings))]
        return texts[int(which * len(texts))]

    def _pixels(self, rows: list[int], augment: Augment | None, streams: NDArray[np.int64]) -> Tensor:
        """Return prepared pictures, changed by ``augment`` with one stream of random numbers each."""
        if augment is not None:
            images = [
                augment(self._image(row), np.random.Generator(np.random.PCG64(int(stream))))
                for row, stream in zip(rows, streams, strict=True)
            ]
            return self._prepare(images)
        missing = [row for row in dict.fromkeys(rows) if row not in self._prepared]
        fresh: dict[int, Tensor] = {}
        if missing:
            pixels = self._prepare([self._image(row) for row in missing])
            fresh = dict(zip(missing, pixels.unbind(), strict=True))
            if pixels[0].nbytes * len(self.data) <= self.cache_mb * 2**20:
                self._prepared.update((row, value.clone()) for row, value in fresh.items())
        return torch.stack([self._prepared[row] if row in self._prepared else fresh[row] for row in rows])

    def _prepare(self, images: list[NDArray[np.uint8]]) -> Tensor:
        if isinstance(self.first, HuabenDualEncoder) and len({image.shape for image in images}) == 1:
            together: Any = np.stack(images)  # one array is prepared at once
            return self.first.prepare_images(together)
        return self.first.prepare_images(images)

    def _image(self, row: int) -> NDArray[np.uint8]:
        """Return a decoded picture, kept while there is room."""
        found = self._images.get(row)
        if found is None:
            found = self.data.image(row)
            if self._cached_bytes + found.nbytes <= self.cache_mb * 2**20:
                self._images[row] = found
                self._cached_bytes += found.nbytes
        return found

    # -- losses ----------------------------------------------------------------------------------------------------

    def loss(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return ``loss`` and its terms.

        ``contrastive`` (or ``siglip``), ``ssl`` (weighted), ``margin`` (weighted), ``margin_raw`` (not),
        ``margin_active`` (share of ordinary captions above the margin), ``scale``, ``accuracy``. The margin terms are
        there wherever partners are; without ``margin`` they are looked at only.
        """
        out, first, second = model(batch["pixels"], batch["tokens"], batch.get("first"), batch.get("second"))
        size = len(batch["ids"])
        with torch.autocast(batch["pixels"].device.type, enabled=False):  # features are compared in float32
            image, text = gather_features(out.image_features.float()), gather_features(out.text_features.float())
            everyone = _Pairs(image, text, gather_ids(batch["ids"]))
            terms = self._pair_terms(out, everyone, size)
            main = terms["siglip" if self.objective == "siglip" else "contrastive"]
            total = main
            if first is not None and second is not None:
                views = gather_features(first.float()), gather_features(second.float())
                ids = everyone.ids if self.ssl_on_hard else everyone.ids[self._layout(everyone, size)[0]]
                terms["ssl"] = self.ssl_weight * nt_xent_loss(*views, ids=ids, rows=own_rows(len(first)))["loss"]
                total = total + terms["ssl"]
            if self.partners != "none":
                terms |= self._margin_terms(out, everyone, size, batch["step"])
                total = total + terms["margin"]
            if out.logit_bias is not None and self.objective != "siglip":
                total = total + 0.0 * out.logit_bias.sum()  # so that every process's wrapper sees its gradient
        logged = {name: term.detach() for name, term in terms.items()}
        return {"loss": total, **logged, "scale": out.logit_scale.detach()}

    def _pair_terms(self, out: DualOutput, pairs: _Pairs, size: int) -> dict[str, Tensor]:
        """Return the loss of pictures against captions: this process's rows, everyone's columns."""
        image, text, ids = pairs.image, pairs.text, pairs.ids
        if self.contrast == "seeds":
            seeds, _ = self._layout(pairs, size)
            image, text, ids, size = image[seeds], text[seeds], ids[seeds], size // (1 + self.hard_per_seed)
        rows = own_rows(size)
        if self.objective == "siglip":
            assert out.logit_bias is not None
            found = siglip_loss(image, text, out.logit_scale, out.logit_bias, ids=ids, rows=rows)
            return {"siglip": found["loss"], "accuracy": found["accuracy"]}
        found = contrastive_loss(image, text, out.logit_scale, ids=ids, rows=rows)
        return {"contrastive": found["loss"], "accuracy": found["accuracy"]}

    def _margin_terms(self, out: DualOutput, pairs: _Pairs, size: int, step: int) -> dict[str, Tensor]:
        """Return the margin loss of this process's seeds against everyone's captions, and sound the alarm."""
        seeds, hard = self._layout(pairs, size)
        mine = own_rows(size // (1 + self.hard_per_seed))
        config = LOOKED_AT if self.margin is None else self.margin
        with torch.set_grad_enabled(self.margin is not None and torch.is_grad_enabled()):
            found = hard_negative_margin_loss(
                pairs.image, pairs.text, hard[mine], seeds[mine], pairs.ids, config, out.logit_scale
            )
        if step < ALARM_STEPS and self.watch is not None and torch.is_grad_enabled():
            self.watch.update(_mean_of_processes(found["active"]))
        return {
            "margin": found["weighted"],
            "margin_raw": found["loss"].detach(),
            "margin_active": found["active"],
        }

    def _layout(self, pairs: _Pairs, size: int) -> tuple[Tensor, Tensor]:
        """Return the seeds' positions in the gathered batch, and which positions hold each one's partners."""
        key = (len(pairs.ids), size, pairs.ids.device)
        if key not in self._masks:
            seeds_a_block = size // (1 + self.hard_per_seed)
            self._masks = {key: hard_mask(key[0] // size, seeds_a_block, self.hard_per_seed, device=key[2])}
        return self._masks[key]

    # -- the end ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return R@1, 5 and 10 on the validation pairs, both directions, by language."""
        assert isinstance(model, HelipTraining)
        return {} if self.valid is None else retrieval_scores(model.encoder, self.valid, self.languages)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the encoder alone, as :func:`~huaben.clip.dual_encoder.load_dual_encoder` reads it."""
        assert isinstance(model, HelipTraining)
        model.encoder.save(folder)


def retrieval_scores(
    encoder: DualEncoder,
    data: PairDataset,
    languages: Sequence[str] = ("en", "zh"),
    *,
    batch: int = 128,
    images: NDArray[np.float32] | None = None,
) -> dict[str, float]:
    """Return ``image_to_text_r1_en`` and the like: recall by direction, rank and language.

    A language's score covers the pairs that have captions in it, all of these captions, and no other pictures.

    Args:
        encoder: in any mode, on any device.
        data: what is searched.
        languages: of the captions.
        batch: pictures or captions encoded together.
        images: (N, E), the pictures' unit vectors, if they are known.

    Raises:
        DataError: if no pair has a caption in any of the languages.
    """
    if images is None:
        images = encode_all_images(encoder, (data.image(row) for row in range(len(data))), batch)
    scores: dict[str, float] = {}
    for language in languages:
        said = [(row, c.text) for row in range(len(data)) for c in data.captions(row) if c.language == language]
        if not said:
            continue
        rows, image_of_text = np.unique([row for row, _ in said], return_inverse=True)
        texts = encode_all_texts(encoder, [text for _, text in said], batch)
        found = retrieval(images[rows], texts, image_of_text, ks=RECALLS)
        for way in ("image_to_text", "text_to_image"):
            scores |= {f"{way}_r{k}_{language}": found[way][f"r{k}"] for k in RECALLS}
    if not scores:
        raise DataError(
            f"{data.name} has no caption in {', '.join(languages)}", hint="name the languages of your captions"
        )
    return scores


def _mean_of_processes(value: Tensor) -> float:
    """Return the mean, the same in all processes, so that all of them stop together."""
    if world_size() == 1:
        return float(value)
    total = value.detach().clone()
    torch.distributed.all_reduce(total)
    return float(total) / world_size()
