"""Chat models that people bring: any OpenAI-compatible server, or a transformers model in this process.

Both are a :class:`~huaben.dialogue.chat.ChatModel`. A server is asked for a JSON schema and, if it refuses that, for
plain text from then on; many servers accept the field and ignore it, so the caller validates either way. A model in
process is held to the schema by llguidance, which masks every token that would leave it.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...dialogue.chat import ChatMessage
from ...errors import CheckpointError, ConfigError, DeviceMemoryError, GenerationError
from ...optional import require

TIMEOUT = 120.0
"""Seconds without a word from a server after which it is given up."""
RETRIES = 2


class OpenAIChat:
    """A model behind an OpenAI-compatible server: OpenAI's own, vLLM, llama.cpp, Ollama, LM Studio and others.

    Args:
        model: its name at the server; None takes the only or first one that the server lists.
        base_url: of the API, such as "http://127.0.0.1:11434/v1"; None is OpenAI's own.
        api_key_env: environment variable that holds the key; a server on this machine needs none.
        temperature: 0 for the likeliest answer.
        timeout: seconds without a word after which it is given up.
        sees_pictures: whether the model reads pictures.

    Raises:
        ConfigError: if OpenAI's own API is meant and there is no key.
        MissingDependencyError: without the openai package.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        base_url: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        temperature: float = 0.2,
        timeout: float = TIMEOUT,
        sees_pictures: bool = False,
    ) -> None:
        openai = require("openai", extra="openai")
        key = os.environ.get(api_key_env, "")
        if base_url is None and not os.environ.get("OPENAI_BASE_URL") and not key:
            raise ConfigError(
                f"there is no key in {api_key_env}",
                hint="set it, or name a server of yours: base_url in the stage file",
            )
        self._openai = openai
        self._client = openai.OpenAI(base_url=base_url, api_key=key or "none", max_retries=RETRIES, timeout=timeout)
        self.where = str(self._client.base_url)
        self.temperature, self.sees_pictures = temperature, sees_pictures
        self._key_env = api_key_env
        self._model = model
        self._schemas = True

    @property
    def name(self) -> str:
        """The model's name, asked from the server once if it was not given."""
        if self._model is None:
            listed = [model.id for model in self._ask(lambda: self._client.models.list()).data]
            if not listed:
                raise ConfigError(f"the server at {self.where} lists no model", hint="load one there, or name it")
            self._model = listed[0]
        return self._model

    def stream(self, messages: Sequence[ChatMessage], *, schema: Mapping[str, Any] | None = None) -> Iterator[str]:
        """Yield the answer in pieces.

        Raises:
            GenerationError: if the server does not answer, or its filter stops the answer.
            ConfigError: for a wrong key or model.
        """
        wire = [self._wire(message) for message in messages]
        use_schema = schema is not None and self._schemas
        try:
            yield from self._pieces(wire, schema if use_schema else None)
        except self._openai.BadRequestError as error:
            if not use_schema or _filtered(error):
                raise self._failure(error) from error
            self._schemas = False  # this server refuses the field
            try:
                yield from self._pieces(wire, None)
            except self._openai.OpenAIError as again:
                raise self._failure(again) from again
        except self._openai.OpenAIError as error:
            raise self._failure(error) from error

    def _pieces(self, wire: list[dict[str, Any]], schema: Mapping[str, Any] | None) -> Iterator[str]:
        """Yield what the server sends; errors are the SDK's."""
        more: dict[str, Any] = {}
        if schema is not None:
            more["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": dict(schema), "strict": False},
            }
        answer = self._client.chat.completions.create(
            model=self.name, messages=wire, stream=True, temperature=self.temperature, **more
        )
        with answer:
            for chunk in answer:
                for choice in chunk.choices or ():
                    if choice.finish_reason == "content_filter":
                        raise GenerationError(
                            "the chat server's filter stopped the answer",
                            hint="say it another way; nothing was changed",
                        )
                    if choice.delta is not None and choice.delta.content:
                        yield choice.delta.content

    def _wire(self, message: ChatMessage) -> dict[str, Any]:
        """Return a message as the API has it."""
        if not message.images or not self.sees_pictures:
            return {"role": message.role, "content": message.text}
        parts: list[dict[str, Any]] = [{"type": "text", "text": message.text}]
        for image in message.images:
            kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
            url = f"data:image/{kind};base64," + base64.b64encode(image).decode("ascii")
            parts.append({"type": "image_url", "image_url": {"url": url}})
        return {"role": message.role, "content": parts}

    def _ask(self, call: Any) -> Any:
        """Call the API with errors of ours."""
        try:
            return call()
        except self._openai.OpenAIError as error:
            raise self._failure(error) from error

    def _failure(self, error: Any) -> GenerationError | ConfigError:
        """Return an error of ours for one of the SDK's."""
        openai, text = self._openai, " ".join(str(getattr(error, "message", error)).split())[:300]
        if isinstance(error, openai.APITimeoutError):
            return GenerationError(
                f"the chat server at {self.where} did not answer in time", hint="try again, or raise its time-out"
            )
        if isinstance(error, openai.APIConnectionError):
            return GenerationError(
                f"there is no chat server at {self.where}", hint="start it, or correct screenwriter.base_url"
            )
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return ConfigError(
                f"the chat server at {self.where} refuses the key", hint=f"put the right one in {self._key_env}"
            )
        if isinstance(error, openai.NotFoundError):
            return ConfigError(
                f"the chat server at {self.where} has no model {self._model!r}: {text}",
                hint="correct screenwriter.model; huaben stage check lists what it has",
            )
        if isinstance(error, openai.RateLimitError):
            return GenerationError(f"the chat server at {self.where} is busy: {text}", hint="try again later")
        if _filtered(error):
            return GenerationError("the chat server's filter refused the message", hint="say it another way")
        return GenerationError(f"the chat server at {self.where} failed: {text}", hint="see the server's log")


def _filtered(error: Any) -> bool:
    """Return whether an error is a content filter's."""
    return str(getattr(error, "code", "")) in ("content_filter", "content_policy_violation")


class TransformersChat:
    """A Hugging Face causal language model in this process, from a local folder; its own code is never run.

    Args:
        folder: of the model, with a chat template.
        device: where it runs.
        dtype: of its weights, such as "bfloat16"; None keeps the checkpoint's.
        temperature: 0 for the likeliest answer.
        max_new_tokens: the longest answer.
        seed: of sampling; unused at temperature 0.

    Raises:
        CheckpointError: if the folder holds no such model.
        MissingDependencyError: without transformers or llguidance.
    """

    sees_pictures = False

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str = "cpu",
        dtype: str | None = None,
        temperature: float = 0.0,
        max_new_tokens: int = 1024,
        seed: int = 0,
    ) -> None:
        transformers = require("transformers", extra="hf")
        self._llguidance = require("llguidance", extra="openai")
        torch = require("torch", extra="hf")
        if not (Path(folder) / "config.json").is_file():
            raise CheckpointError(f"{folder} is no model folder", hint="get one: huaben models get NAME")
        from ...pretrained import refuse_code  # brings torch, which a server has no need of

        refuse_code(Path(folder))
        if dtype is not None and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ConfigError(f"dtype {dtype!r} is unknown", hint="use float32, bfloat16 or float16")
        options = {"trust_remote_code": False, "local_files_only": True}
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
            self._model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, use_safetensors=True, dtype=None if dtype is None else getattr(torch, dtype), **options
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"{folder} cannot be loaded as a chat model: {reason}", hint="a safetensors folder without own code"
            ) from error
        if self._tokenizer.chat_template is None:
            raise CheckpointError(f"the tokenizer in {folder} has no chat template", hint="take an instruct model")
        self._torch = torch
        self._model.to(device).eval()
        self.name = Path(folder).name
        self.temperature, self.max_new_tokens, self.seed = temperature, max_new_tokens, seed
        self._vocabulary = max(int(self._model.config.get_text_config().vocab_size), len(self._tokenizer))
        self._grammar_tokens: Any = None

    def stream(self, messages: Sequence[ChatMessage], *, schema: Mapping[str, Any] | None = None) -> Iterator[str]:
        """Yield the answer in pieces; it satisfies ``schema`` unless it runs into the length limit.

        Raises:
            DeviceMemoryError: if the device has too little memory.
            GenerationError: if the model computes no numbers.
        """
        torch = self._torch
        wire = [{"role": message.role, "content": message.text} for message in messages]
        encoded = self._tokenizer.apply_chat_template(
            wire, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = encoded["input_ids"].to(self._model.device)
        matcher = None if schema is None else self._matcher(schema)
        ends = _end_tokens(self._model, self._tokenizer)
        generator = torch.Generator().manual_seed(self.seed)
        made: list[int] = []
        said, cache = "", None
        try:
            for _ in range(self.max_new_tokens):
                with torch.inference_mode():
                    out = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache = out.past_key_values
                token = self._choose(out.logits[:, -1].float().cpu(), matcher, generator)
                if token in ends:
                    break
                made.append(token)
                text = self._tokenizer.decode(made, skip_special_tokens=True)
                if not text.endswith("\ufffd"):  # half a character waits for its other half
                    yield text[len(said) :]
                    said = text
                if matcher is not None and matcher.is_stopped():
                    break
                ids = torch.tensor([[token]], device=self._model.device)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"{self.name} does not fit beside what is loaded", hint="use a smaller chat model, or device = 'cpu'"
            ) from error

    def _choose(self, logits: Any, matcher: Any, generator: Any) -> int:
        """Return the next token of logits [1, vocabulary], within the grammar."""
        torch = self._torch
        if not bool(torch.isfinite(logits).any()) or bool(torch.isnan(logits).any()):
            raise GenerationError(f"{self.name} computes no numbers", hint="use dtype = 'float32' or 'bfloat16'")
        if matcher is not None:
            masks = require("llguidance.torch", extra="openai")
            mask = masks.allocate_token_bitmask(1, logits.shape[-1])
            masks.fill_next_token_bitmask(matcher, mask, 0)
            masks.apply_token_bitmask_inplace(logits, mask)
        if self.temperature <= 0:
            token = int(logits.argmax())
        else:
            token = int(torch.multinomial((logits[0] / self.temperature).softmax(-1), 1, generator=generator))
        if matcher is not None:
            matcher.consume_token(token)
        return token

    def _matcher(self, schema: Mapping[str, Any]) -> Any:
        """Return a fresh automaton of the schema over this tokenizer."""
        if self._grammar_tokens is None:
            bridge = require("llguidance.hf", extra="openai")
            self._grammar_tokens = bridge.from_tokenizer(self._tokenizer, self._vocabulary)
        matcher_class = self._llguidance.LLMatcher
        # whitespace is free in JSON, and a weak model would write it without end
        grammar = matcher_class.grammar_from_json_schema(dict(schema), {"whitespace_flexible": False})
        matcher = matcher_class(self._grammar_tokens, grammar)
        if matcher.is_error():
            raise ConfigError(f"the schema cannot be turned into a grammar: {matcher.get_error()}")
        return matcher


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Return every token that ends an answer."""
    ends = model.generation_config.eos_token_id
    found = set(ends if isinstance(ends, list) else [ends]) | {tokenizer.eos_token_id}
    return {token for token in found if token is not None}
