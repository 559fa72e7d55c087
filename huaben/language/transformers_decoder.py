"""The decoder as a transformers model: ``AutoConfig``, ``AutoModelForCausalLM``, ``generate`` and ``Trainer``.

Importing this module needs transformers. :func:`register` makes the auto classes know the model::

    from huaben.language.transformers_decoder import DecoderForCausalLM, register

    register()
    model = DecoderForCausalLM.from_decoder(Decoder.from_pretrained("folder"))
    model.save_pretrained("hub-folder")
    AutoModelForCausalLM.from_pretrained("hub-folder")

``model.decoder`` is the decoder itself: ``model.decoder.save_pretrained(folder)`` writes huaben's own folder again.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError
from ..optional import require
from .decoder import Cache, Decoder, DecoderConfig

_transformers: ModuleType = require("transformers", extra="hf")
_outputs: ModuleType = require("transformers.modeling_outputs", extra="hf")
_Config: Any = _transformers.PreTrainedConfig
_Model: Any = _transformers.PreTrainedModel
_Generation: Any = _transformers.GenerationMixin


class DecoderAutoConfig(_Config):
    """A :class:`DecoderConfig` in transformers' clothes; its fields live in ``shape``.

    The common names (``hidden_size``, ``num_hidden_layers``, ...) are read from there and cannot be set.
    """

    model_type = "huaben_decoder"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - transformers reads it from the class

    shape: dict[str, Any] | None = None
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False  # the decoder ties by itself: there is no second matrix to tie

    def __post_init__(self, **kwargs: Any) -> None:
        self.shape = DecoderConfig.from_dict(self.shape or {}).to_dict()
        super().__post_init__(**kwargs)

    @classmethod
    def from_decoder(cls, config: DecoderConfig, **kwargs: Any) -> Self:
        """Wrap a decoder's config; ``kwargs`` are transformers' own settings, such as ``eos_token_id``."""
        return cls(shape=config.to_dict(), **kwargs)

    @property
    def decoder_config(self) -> DecoderConfig:
        """The decoder's own config."""
        return DecoderConfig.from_dict(self.shape or {})

    @property
    def vocab_size(self) -> int:
        return self.decoder_config.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.decoder_config.width

    @property
    def num_hidden_layers(self) -> int:
        return self.decoder_config.layers

    @property
    def num_attention_heads(self) -> int:
        return self.decoder_config.heads

    @property
    def num_key_value_heads(self) -> int:
        return self.decoder_config.num_kv_heads

    @property
    def head_dim(self) -> int:
        return self.decoder_config.head_dim


class _BorrowedCache(Cache):
    """The decoder's view of a transformers cache, which keeps the keys and values."""

    def __init__(self, config: DecoderConfig, batch: int, held: Any) -> None:
        super().__init__(config, batch, capacity=1)
        self.length = int(held.get_seq_length())
        self._held = held

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        end = self.length + k.shape[2]
        keys, values = self._held.update(k, v, layer)
        return keys[:, :, :end], values[:, :, :end]  # a static cache answers with all of its room


class DecoderForCausalLM(_Model, _Generation):
    """:class:`Decoder` with transformers' calling conventions.

    Left-padded batches need their ``attention_mask``. Texts packed into one row are told apart by ``position_ids``
    that start anew, when neither a mask nor a cache is given (transformers' convention).
    """

    config_class = DecoderAutoConfig
    config: DecoderAutoConfig
    base_model_prefix = "decoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderBlock"]  # noqa: RUF012 - transformers reads it from the class
    _can_compile_fullgraph = False

    def __init__(self, config: DecoderAutoConfig, decoder: Decoder | None = None) -> None:
        super().__init__(config)
        self.decoder = Decoder(config.decoder_config) if decoder is None else decoder
        self._drawn = not self.decoder.embedding.weight.is_meta  # loading builds the model without weights
        self.post_init()

    @classmethod
    def from_decoder(cls, decoder: Decoder, **kwargs: Any) -> Self:
        """Wrap a trained decoder, sharing its weights.

        Args:
            decoder: becomes ``.decoder`` of the result.
            kwargs: transformers' own settings: ``eos_token_id``, ``pad_token_id``, ...
        """
        return cls(DecoderAutoConfig.from_decoder(decoder.config, **kwargs), decoder).train(decoder.training)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Draw what a loaded folder did not hold as the decoder draws it; transformers' own rules would differ."""
        if self._drawn:
            return
        self._drawn = True
        missing = {
            name: tensor
            for name, tensor in (*self.decoder.named_parameters(), *self.decoder.named_buffers())
            if not getattr(tensor, "_is_hf_initialized", False)
        }
        if missing:
            fresh = Decoder(self.config.decoder_config)
            drawn = dict((*fresh.named_parameters(), *fresh.named_buffers()))
            for name, tensor in missing.items():
                tensor.copy_(drawn[name])

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.embedding

    def get_output_embeddings(self) -> nn.Module | None:
        return self.decoder.head

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Refuse: the vocabulary belongs to the decoder's config.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "the vocabulary of a decoder is fixed", hint="build one with another vocab_size and copy the rows"
        )

    @staticmethod
    def create_masks_for_generate(*, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
        """Return the two-dimensional mask as it is: the decoder makes its own."""
        return attention_mask

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return ``CausalLMOutputWithPast``.

        Args:
            input_ids: int64 (B, T): the whole text, or what follows the cached tokens.
            attention_mask: (B, P + T), True or 1 for a real token; of the cached tokens too.
            position_ids: (B, T); read only to tell packed texts apart.
            past_key_values: a transformers cache; made if ``use_cache`` and None.
            labels: int64 (B, T), shifted here; -100 does not count.
            use_cache: whether to return a cache; the config's setting by default, off while training.
            logits_to_keep: only the last so many logits (0 for all), or an index of positions.
            inputs_embeds, output_attentions, output_hidden_states: not supported.
            return_dict: False for a tuple.
            kwargs: passed on to the loss (``num_items_in_batch`` of the Trainer).

        Raises:
            ConfigError: for an unsupported argument.
            ShapeError: for a mask that is not (B, P + T).
        """
        if inputs_embeds is not None or output_attentions or output_hidden_states:
            raise ConfigError(
                "inputs_embeds, output_attentions and output_hidden_states are not supported",
                hint="call model.decoder.states for the last states",
            )
        batch, count = input_ids.shape
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = _transformers.DynamicCache()
        cache, mask, documents = None, None, None
        if past_key_values is not None:
            cache = _BorrowedCache(self.decoder.config, batch, past_key_values)
        held = 0 if cache is None else cache.length
        if attention_mask is not None:
            if attention_mask.shape != (batch, held + count):
                raise ShapeError(
                    f"attention_mask is {tuple(attention_mask.shape)}, expected {(batch, held + count)}",
                    hint="one number per token, cached ones included",
                )
            mask = attention_mask.bool()
            if cache is not None:
                cache.mask, mask = mask[:, :held], mask[:, held:]
        elif position_ids is not None and cache is None and count > 1:
            documents = (position_ids.diff(dim=1, prepend=position_ids[:, :1] - 1) != 1).cumsum(1).expand(batch, -1)
            documents = None if bool((documents == documents[:, :1]).all()) else documents
        states = self.decoder.states(input_ids, mask=mask, documents=documents, cache=cache)
        if not isinstance(logits_to_keep, int):
            states = states[:, logits_to_keep]
        elif logits_to_keep:
            states = states[:, -logits_to_keep:]
        logits = self.decoder.unembed(states)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        output = _outputs.CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=past_key_values if use_cache else None
        )
        return output if return_dict is not False else output.to_tuple()


def register() -> None:
    """Teach ``AutoConfig`` and ``AutoModelForCausalLM`` the model type "huaben_decoder"; repeated calls are fine."""
    _transformers.AutoConfig.register("huaben_decoder", DecoderAutoConfig, exist_ok=True)
    _transformers.AutoModelForCausalLM.register(DecoderAutoConfig, DecoderForCausalLM, exist_ok=True)
