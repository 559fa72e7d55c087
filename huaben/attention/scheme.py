"""Position schemes: a position encoding and a score adapter under one name, for one attention layer.

A scheme is two free choices: where positions enter (``position``) and whether an adapter processes the scores
(``adapter``). ``"kerple"`` is a plain bias, ``"dape-kerple"`` adds the perceptron of DAPE, ``"v2-kerple"`` the
convolution of DAPE V2.

Source: Zheng et al. 2024, DAPE (arXiv:2405.14722) and DAPE V2 (arXiv:2410.04798).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn

from ..config import Config
from ..errors import ConfigError
from .adaptive import AdapterInit, AdapterMode, ScoreAdapter, ScoreConv, ScoreMLP
from .bias import FIRE, ALiBi, Bias, KerpleLog, KerplePower, T5Bias
from .content import ContentBias, CoPE, TransformerXL
from .dape import Edge, Implementation, dape_attention
from .positions import BASE, RandomizedRope, Rope, Yarn

Position = Literal[
    "nope",
    "rope",
    "randomized_rope",
    "yarn",
    "t5",
    "alibi",
    "kerple",
    "kerple_power",
    "fire",
    "cope",
    "transformer_xl",
]
Adapter = Literal["none", "mlp", "conv"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SchemeConfig(Config):
    """Where positions enter and how scores are processed.

    Attributes:
        position: the encoding; ``"nope"`` has none but the causal mask.
        adapter: ``"mlp"`` for DAPE, ``"conv"`` for DAPE V2.
        kernel_size, hidden, mode, init: of the adapter, see :class:`~huaben.attention.adaptive.ScoreAdapter`; the
            kernel is the convolution's.
        edge: what follows the last key, see :func:`~huaben.attention.dape.dape_attention`.
        train_length: where FIRE's threshold starts and what YaRN stretches.
        rope_base: of every rotary encoding.
        randomized_max, randomized_stride: see :class:`~huaben.attention.positions.RandomizedRope`.
        yarn_factor: see :class:`~huaben.attention.positions.Yarn`.
        alibi_past_bonus: see :class:`~huaben.attention.bias.ALiBi`; for two-way attention.
        fire_hidden: width of FIRE's perceptron.
        t5_buckets, t5_max_distance, t5_bidirectional: see :func:`~huaben.attention.bias.t5_bucket`.
        cope_positions: number of CoPE's embeddings.
    """

    position: Position = "nope"
    adapter: Adapter = "none"
    kernel_size: int = 3
    hidden: int = 32
    mode: AdapterMode = "concat_residual"
    init: AdapterInit = "torch"
    edge: Edge = "virtual"
    train_length: int = 512
    rope_base: float = BASE
    randomized_max: int = 2048
    randomized_stride: int = 1
    yarn_factor: float = 4.0
    alibi_past_bonus: float = 0.0
    fire_hidden: int = 32
    t5_buckets: int = 32
    t5_max_distance: int = 128
    t5_bidirectional: bool = False
    cope_positions: int = 64

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("position", self.position, get_args(Position)),
            ("adapter", self.adapter, get_args(Adapter)),
            ("mode", self.mode, get_args(AdapterMode)),
            ("init", self.init, get_args(AdapterInit)),
            ("edge", self.edge, get_args(Edge)),
        ):
            if value not in choices:
                raise ConfigError(
                    f"{name}={value!r} is none of {', '.join(map(repr, choices))}", hint=_near(value, choices)
                )
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size={self.kernel_size}, expected an odd number", hint="use 3")
        for name in ("hidden", "train_length", "randomized_max", "randomized_stride", "fire_hidden"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}, expected at least 1", hint="leave the default")


def _schemes() -> dict[str, SchemeConfig]:
    schemes = {name: SchemeConfig(position=name) for name in get_args(Position)}
    for name in ("nope", "rope", "alibi", "kerple", "fire", "t5"):
        schemes[f"dape-{name}"] = SchemeConfig(position=name, adapter="mlp")  # type: ignore[arg-type]
        schemes[f"v2-{name}"] = SchemeConfig(position=name, adapter="conv")  # type: ignore[arg-type]
    return schemes


SCHEMES: dict[str, SchemeConfig] = _schemes()


def scheme_config(name: str, **changes: Any) -> SchemeConfig:
    """Return a scheme by name, with changes.

    Raises:
        ConfigError: for an unknown name, with the nearest one, or an unknown field.
    """
    if name not in SCHEMES:
        raise ConfigError(f"no position scheme is called {name!r}", hint=_near(name, tuple(SCHEMES)))
    return SchemeConfig.from_dict({**SCHEMES[name].to_dict(), **changes})


def _near(value: object, choices: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(value), choices, n=1)
    return f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(choices)}"


class Scheme(nn.Module):
    """A position scheme for one attention layer.

    Queries and keys go through :meth:`rotate` first (keys before they are cached), then through :meth:`forward`.

    Args:
        config: the scheme.
        heads: query heads.
        head_dim: width of a head.

    Attributes:
        rotary, bias, score: the parts, None where the scheme has none.
    """

    def __init__(self, config: SchemeConfig, heads: int, head_dim: int) -> None:
        super().__init__()
        self.config, self.heads, self.head_dim = config, heads, head_dim
        self.rotary: Rope | None = _rotary(config, head_dim)
        self.bias: Bias | ContentBias | None = _bias(config, heads, head_dim)
        self.score: ScoreAdapter | None = _score(config, heads, self.bias is not None)

    def rotate(self, states: Tensor, positions: Tensor) -> Tensor:
        """Return queries or keys ``(B, H, T, d)`` turned to ``positions``, ``(T,)`` or ``(B, T)``; others as they are."""
        return states if self.rotary is None else self.rotary.rotate(states, positions)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        causal: bool = True,
        q_offset: int = 0,
        key_mask: Tensor | None = None,
        documents: Tensor | None = None,
        start: Tensor | None = None,
        impl: Implementation = "auto",
    ) -> Tensor:
        """Return the attention of queries and keys that :meth:`rotate` has seen; see :func:`dape_attention`."""
        out = dape_attention(
            q,
            k,
            v,
            bias=self.bias,
            score=self.score,
            causal=causal,
            q_offset=q_offset,
            edge=self.config.edge,
            key_mask=key_mask,
            documents=documents,
            start=start,
            impl=impl,
        )
        if self.training and isinstance(self.rotary, RandomizedRope):
            self.rotary.resample()
        return out

    def extra_repr(self) -> str:
        return f"position={self.config.position!r}, adapter={self.config.adapter!r}"


def _rotary(config: SchemeConfig, head_dim: int) -> Rope | None:
    if config.position == "rope":
        return Rope(head_dim, base=config.rope_base)
    if config.position == "randomized_rope":
        return RandomizedRope(
            head_dim, max_position=config.randomized_max, stride=config.randomized_stride, base=config.rope_base
        )
    if config.position == "yarn":
        return Yarn(head_dim, factor=config.yarn_factor, train_length=config.train_length, base=config.rope_base)
    return None


def _bias(config: SchemeConfig, heads: int, head_dim: int) -> Bias | ContentBias | None:
    match config.position:
        case "t5":
            return T5Bias(
                heads,
                multiplier=head_dim**0.5,
                buckets=config.t5_buckets,
                max_distance=config.t5_max_distance,
                bidirectional=config.t5_bidirectional,
            )
        case "alibi":
            return ALiBi(heads, past_bonus=config.alibi_past_bonus)
        case "kerple":
            return KerpleLog(heads)
        case "kerple_power":
            return KerplePower(heads)
        case "fire":
            return FIRE(heads, length=config.train_length, hidden=config.fire_hidden)
        case "cope":
            return CoPE(heads, head_dim, positions=config.cope_positions)
        case "transformer_xl":
            return TransformerXL(heads, head_dim)
    return None


def _score(config: SchemeConfig, heads: int, with_bias: bool) -> ScoreAdapter | None:
    if config.adapter == "mlp":
        return ScoreMLP(heads, config.hidden, with_bias=with_bias, mode=config.mode, init=config.init)
    if config.adapter == "conv":
        return ScoreConv(
            heads,
            config.hidden,
            kernel_size=config.kernel_size,
            with_bias=with_bias,
            mode=config.mode,
            init=config.init,
        )
    return None
