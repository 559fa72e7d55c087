"""Attention: positions, layers and heads shared by the models."""

from .layers import MLP, LayerNorm, sinusoidal_embedding
from .multihead import AttentionPooler, CrossAttention, SelfAttention
from .rope import apply_rotary, grid_extent, grid_positions, point_positions, rotary_at, rotary_table

__all__ = [
    "MLP",
    "AttentionPooler",
    "CrossAttention",
    "LayerNorm",
    "SelfAttention",
    "apply_rotary",
    "grid_extent",
    "grid_positions",
    "point_positions",
    "rotary_at",
    "rotary_table",
    "sinusoidal_embedding",
]
