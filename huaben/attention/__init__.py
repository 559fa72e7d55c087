"""Attention: positions, layers and heads shared by the models."""

from .adaptive import ScoreAdapter, ScoreConv, ScoreMLP
from .bias import FIRE, ALiBi, Bias, KerpleLog, KerplePower, T5Bias
from .content import ContentBias, CoPE, TransformerXL
from .dape import dape_attention
from .layers import MLP, LayerNorm, sinusoidal_embedding
from .multihead import AttentionPooler, CrossAttention, SelfAttention
from .positions import RandomizedRope, Rope, Yarn
from .rope import apply_rotary, grid_extent, grid_positions, point_positions, rotary_at, rotary_table
from .scheme import SCHEMES, Scheme, SchemeConfig, scheme_config

__all__ = [
    "FIRE",
    "MLP",
    "SCHEMES",
    "ALiBi",
    "AttentionPooler",
    "Bias",
    "CoPE",
    "ContentBias",
    "CrossAttention",
    "KerpleLog",
    "KerplePower",
    "LayerNorm",
    "RandomizedRope",
    "Rope",
    "Scheme",
    "SchemeConfig",
    "ScoreAdapter",
    "ScoreConv",
    "ScoreMLP",
    "SelfAttention",
    "T5Bias",
    "TransformerXL",
    "Yarn",
    "apply_rotary",
    "dape_attention",
    "grid_extent",
    "grid_positions",
    "point_positions",
    "rotary_at",
    "rotary_table",
    "scheme_config",
    "sinusoidal_embedding",
]
