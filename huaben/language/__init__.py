"""Text to tokens to states to text."""

from .decoder import Cache, Decoder, DecoderConfig
from .encoder import TextEncoder, TextEncoderConfig
from .generate import generate, pad_left, stream
from .tokenizer import Tokenizer, Tokens

__all__ = [
    "Cache",
    "Decoder",
    "DecoderConfig",
    "TextEncoder",
    "TextEncoderConfig",
    "Tokenizer",
    "Tokens",
    "generate",
    "pad_left",
    "stream",
]
