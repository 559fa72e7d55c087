"""Chat models: the real openai SDK against a server of every mood, and tiny transformers models under a grammar."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from huaben.dialogue.chat import ChatMessage, ChatModel, whole_answer
from huaben.dialogue.llm import LLMScreenwriter, answer_schema
from huaben.dialogue.message import Conversation, Message
from huaben.errors import CheckpointError, ConfigError, GenerationError, MissingDependencyError

pytest.importorskip("openai")

from huaben.stages.open.chat import OpenAIChat, TransformersChat

ASK = [ChatMessage(role="system", text="Answer."), ChatMessage(role="user", text="a fox")]


class Server:
    """An OpenAI-compatible server on loopback whose mood is set by the test."""

    def __init__(self) -> None:
        self.mood, self.answer = "well", "你好 fox"
        self.bodies: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def send(self, status: int, value: dict[str, Any]) -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                self.send(200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.bodies.append(body)
                errors = {
                    "key": (401, "invalid_api_key"),
                    "model": (404, "model_not_found"),
                    "filter": (400, "content_filter"),
                    "broken": (422, "server_error"),
                }
                if outer.mood == "no schema" and "response_format" in body:
                    return self.send(400, {"error": {"message": "response_format is unknown", "code": "invalid"}})
                if outer.mood in errors:
                    status, code = errors[outer.mood]
                    return self.send(status, {"error": {"message": code, "code": code}})
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.end_headers()
                for piece in outer.answer.split(" "):
                    choice = {"index": 0, "delta": {"content": piece + " "}, "finish_reason": None}
                    self.event({"choices": [choice]})
                reason = "content_filter" if outer.mood == "filtered late" else "stop"
                self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
                self.wfile.write(b"data: [DONE]\n\n")

            def event(self, value: dict[str, Any]) -> None:
                chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "tiny", **value}
                self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_streams_and_names_the_model(server: Server) -> None:
    chat = OpenAIChat(base_url=server.url)
    assert isinstance(chat, ChatModel)
    assert list(chat.stream(ASK)) == ["你好 ", "fox "]
    assert chat.name == "tiny"
    body = server.bodies[0]
    assert body["model"] == "tiny" and body["messages"][1] == {"role": "user", "content": "a fox"}


def test_a_schema_is_asked_for_and_dropped_where_it_is_refused(server: Server) -> None:
    chat = OpenAIChat(base_url=server.url)
    schema = answer_schema(None, 0)
    whole_answer(chat, ASK, schema=schema)
    assert server.bodies[-1]["response_format"]["json_schema"]["schema"] == schema
    server.mood = "no schema"
    assert whole_answer(chat, ASK, schema=schema).startswith("你好")
    assert "response_format" not in server.bodies[-1]
    count = len(server.bodies)
    whole_answer(chat, ASK, schema=schema)
    assert len(server.bodies) == count + 1  # and never asked for again


@pytest.mark.parametrize(
    ("mood", "kind", "word"),
    [
        ("key", ConfigError, "key"),
        ("model", ConfigError, "tiny"),
        ("filter", GenerationError, "filter"),
        ("filtered late", GenerationError, "filter"),
        ("broken", GenerationError, "failed"),
    ],
)
def test_what_a_server_says_is_worded(server: Server, mood: str, kind: type[Exception], word: str) -> None:
    server.mood = mood
    with pytest.raises(kind, match=word) as caught:
        whole_answer(OpenAIChat(base_url=server.url), ASK)
    assert caught.value.hint  # type: ignore[attr-defined]


def test_no_server(server: Server) -> None:
    server.http.shutdown()
    server.http.server_close()
    chat = OpenAIChat("tiny", base_url=server.url)
    with pytest.raises(GenerationError, match="there is no chat server"):
        whole_answer(chat, ASK)


def test_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        OpenAIChat("gpt")


def test_a_picture_goes_only_to_models_that_see(server: Server) -> None:
    ask = [ChatMessage(role="user", text="what is this?", images=(b"\x89PNG",))]
    whole_answer(OpenAIChat(base_url=server.url), ask)
    assert server.bodies[-1]["messages"][0]["content"] == "what is this?"
    whole_answer(OpenAIChat(base_url=server.url, sees_pictures=True), ask)
    assert server.bodies[-1]["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")


def test_a_screenwriter_on_a_server(server: Server) -> None:
    server.answer = json.dumps({"action": "draw", "add": [{"prompt": "a red fox"}], "reply": "ok"})
    reply = LLMScreenwriter(OpenAIChat(base_url=server.url)).read(Message(text="a fox"), Conversation())
    assert reply.action == "draw" and reply.page is not None and reply.page.characters[0].category == "fox"


@pytest.mark.skipif("HUABEN_TEST_CHAT_MODEL" not in os.environ, reason="no HUABEN_TEST_CHAT_MODEL")
@pytest.mark.slow
def test_a_real_chat_model() -> None:
    chat = OpenAIChat(base_url=os.environ["HUABEN_TEST_CHAT_MODEL"])
    reply = LLMScreenwriter(chat).read(Message(text="draw a red cat on the beach"), Conversation())
    assert reply.action == "draw" and reply.page is not None
    assert "cat" in reply.page.characters[0].prompt


# -------------------------------------------------------------------------------------------------------- in process


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 with a byte tokenizer and a chat template."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    import torch

    pytest.importorskip("llguidance")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = {letter: index for index, letter in enumerate(["<|end|>", *alphabet, "<|unused|>"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(words, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")  # noqa: S106
    fast.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    config = transformers.Qwen2Config(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "tiny-qwen"
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


SCHEMA = {
    "type": "object",
    "properties": {
        "action": {"enum": ["draw", "chat"]},
        "ids": {"type": "array", "items": {"enum": [1]}, "maxItems": 2},
    },
    "required": ["action", "ids"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_random_weights_cannot_leave_the_schema(tiny_folder: Path, temperature: float) -> None:
    chat = TransformersChat(tiny_folder, temperature=temperature, max_new_tokens=400)
    assert isinstance(chat, ChatModel)
    answer = json.loads(whole_answer(chat, ASK, schema=SCHEMA))
    assert answer["action"] in ("draw", "chat") and set(answer["ids"]) <= {1}


def test_without_a_schema_the_length_is_bounded(tiny_folder: Path) -> None:
    pieces = list(TransformersChat(tiny_folder, max_new_tokens=5).stream(ASK))
    assert len(pieces) <= 5


def test_folders_that_hold_no_chat_model(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model folder"):
        TransformersChat(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "evil.Model"}}')
    with pytest.raises(CheckpointError):
        TransformersChat(tmp_path)
    with pytest.raises(ConfigError, match="dtype"):
        TransformersChat(tiny_folder, dtype="float3")


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import huaben.optional as optional

    real = optional.importlib.util.find_spec
    monkeypatch.setattr(optional.importlib.util, "find_spec", lambda name: None if name == "openai" else real(name))
    with pytest.raises(MissingDependencyError, match="openai"):
        OpenAIChat("x", base_url="http://127.0.0.1:1/v1")
