"""Text to tokens to states."""

from .encoder import TextEncoder, TextEncoderConfig
from .tokenizer import Tokenizer, Tokens

__all__ = ["TextEncoder", "TextEncoderConfig", "Tokenizer", "Tokens"]
