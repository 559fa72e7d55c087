"""``huaben lm train``, ``huaben lm eval`` and ``huaben lm generate``: language models with any position scheme."""

from __future__ import annotations

import codecs
import difflib
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .lm_words import tell
from .main import print_json
from .words import say

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..language.bytes import TextTokenizer
    from ..language.decoder import Decoder, DecoderConfig

app = typer.Typer(help=tell("lm"), no_args_is_help=True, add_completion=False, rich_markup_mode=None)

DEFAULT_STEPS = 1000
POSITION = "v2-kerple"
PRESET_NAMES = "tiny, 15m, 125m, 350m"
Device = Annotated[str, typer.Option(help=tell("lm_device"))]
Field = Annotated[str, typer.Option(help=tell("lm_field"))]
Json = Annotated[bool, typer.Option("--json", help=say("json"))]
Model = Annotated[Path, typer.Argument(help=tell("lm_model"))]
Texts = Annotated[list[Path], typer.Argument(help=tell("lm_texts"))]
Threads = Annotated[int | None, typer.Option(help=tell("lm_threads"))]


@app.command("train", help=tell("lm_train"))
def train(
    ctx: typer.Context,
    texts: Texts,
    position: Annotated[str | None, typer.Option(help=tell("lm_position"))] = None,
    length: Annotated[int, typer.Option(help=tell("lm_length"))] = 128,
    out: Annotated[Path, typer.Option(help=tell("lm_out"))] = Path("runs/lm"),
    steps: Annotated[int | None, typer.Option(help=tell("lm_steps"))] = None,
    minutes: Annotated[float | None, typer.Option(help=tell("lm_minutes"))] = None,
    resume: Annotated[bool, typer.Option("--resume", help=tell("lm_resume"))] = False,
    preset: Annotated[str, typer.Option(help=tell("lm_preset", names=PRESET_NAMES))] = "tiny",
    config: Annotated[Path | None, typer.Option(help=tell("lm_config"))] = None,
    tokenizer: Annotated[str, typer.Option(help=tell("lm_tokenizer"))] = "bytes",
    vocab_size: Annotated[int, typer.Option(help=tell("lm_vocab"))] = 8192,
    batch: Annotated[int, typer.Option(help=tell("lm_batch"))] = 16,
    learning_rate: Annotated[float, typer.Option(help=tell("lm_rate"))] = 2e-3,
    valid: Annotated[list[Path] | None, typer.Option(help=tell("lm_valid"))] = None,
    field: Field = "text",
    stream: Annotated[bool, typer.Option("--stream", help=tell("lm_stream"))] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help=tell("lm_bf16"))] = False,
    device: Device = "auto",
    threads: Threads = None,
    seed: Annotated[int, typer.Option(help=tell("lm_seed"))] = 0,
    as_json: Json = False,
) -> None:
    """Train a model; under torchrun, with all its processes."""
    from ..files import folder_lock
    from ..language.corpus import corpus_from_files
    from ..recipes.distributed import fit_distributed, is_main_process, main_process_first
    from ..recipes.lm import LMRecipe, lm_fit, named_scheme
    from ..training import CHECKPOINT_NAME

    if tokenizer not in ("bytes", "bpe"):
        raise UsageError(f"--tokenizer {tokenizer} is neither bytes nor bpe", hint="use --tokenizer bytes")
    shape = _shape(preset, config)
    if is_main_process():
        ctx.with_resource(folder_lock(out, "training"))
    if position is not None or config is None:
        shape = shape.replace(scheme=named_scheme(position or POSITION, train_length=length))
    with main_process_first(device):
        codec = _tokenizer(tokenizer, texts, out, vocab_size, field)
        corpus = corpus_from_files(texts, codec, out / "corpus", field=field)
        held_out = corpus_from_files(valid, codec, out / "valid", field=field) if valid else None
    planned = steps
    if steps is None and minutes is None:
        planned = _planned(out) if resume else DEFAULT_STEPS
    changes: dict[str, Any] = {} if threads is None else {"threads": threads}
    recipe = LMRecipe(
        corpus,
        codec,
        shape.replace(vocab_size=codec.vocab_size),
        length=length,
        batch_size=batch,
        fit=lm_fit(steps=planned, learning_rate=learning_rate, seed=seed, bf16=bf16, **changes),
        documents=not stream,
        valid=held_out,
    )
    going_on = resume and steps is None and minutes is None and (out / CHECKPOINT_NAME).exists()
    result = fit_distributed(
        recipe, out, minutes=minutes, steps=None if going_on else planned, resume=resume, device=device
    )
    if not is_main_process():
        return
    if as_json:
        print_json(
            {
                "folder": str(result.folder),
                "scheme": shape.scheme.to_dict(),
                "steps": result.steps,
                "seconds": round(result.seconds, 3),
                "terms": result.terms,
                "scores": result.scores,
                "tokens": len(corpus),
                "documents": corpus.num_documents,
            }
        )
        return
    typer.echo(
        tell(
            "lm_trained",
            steps=result.steps,
            minutes=result.seconds / 60,
            loss=result.terms.get("loss", float("nan")),
            folder=result.folder,
        ),
        err=True,
    )
    for key, value in result.scores.items():
        typer.echo(f"{key}: {value:.4f}")


@app.command("eval", help=tell("lm_eval"))
def evaluate(
    model: Model,
    texts: Texts,
    lengths: Annotated[str, typer.Option(help=tell("lm_lengths"))] = "128,256,512,1024,2048",
    windows: Annotated[int, typer.Option(help=tell("lm_windows"))] = 256,
    scored: Annotated[int, typer.Option(help=tell("lm_scored"))] = 256,
    field: Field = "text",
    stream: Annotated[bool, typer.Option("--stream", help=tell("lm_stream"))] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help=tell("lm_bf16"))] = False,
    device: Device = "auto",
    threads: Threads = None,
    seed: Annotated[int, typer.Option(help=tell("lm_seed_windows"))] = 0,
    as_json: Json = False,
) -> None:
    """Score the same windows at every length."""
    from ..language.corpus import corpus_from_files
    from ..language.extrapolation import evaluate_lengths

    wanted = _lengths(lengths)
    decoder, codec, folder = _load(model, device, threads)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="huaben-lm-") as scratch:
        corpus = corpus_from_files(texts, codec, Path(scratch) / "corpus", field=field)
        found = evaluate_lengths(
            decoder,
            corpus,
            lengths=wanted,
            windows=windows,
            scored=scored,
            seed=seed,
            within_documents=not stream,
            bf16=bf16,
            on_progress=_progress(windows),
        )
    record = found.to_dict(seed)
    scheme = decoder.config.scheme
    if as_json:
        seconds = round(time.perf_counter() - begun, 3)
        print_json({"model": str(folder), "scheme": scheme.to_dict(), "seed": seed, "seconds": seconds, **record})
        return
    named = scheme.position if scheme.adapter == "none" else f"{scheme.position}+{scheme.adapter}"
    typer.echo(tell("lm_evaluated", model=folder, scheme=named, windows=windows, shared=record["shared"]), err=True)
    for number, row in record["lengths"].items():
        typer.echo(tell("lm_row", length=number, **row["perplexity"]))


@app.command("generate", help=tell("lm_generate"))
def write(
    model: Model,
    prompt: Annotated[str, typer.Argument(help=tell("lm_prompt"))] = "",
    tokens: Annotated[int, typer.Option(help=tell("lm_tokens"))] = 200,
    temperature: Annotated[float, typer.Option(help=tell("lm_temperature"))] = 0.8,
    top_k: Annotated[int | None, typer.Option(help=tell("lm_top_k"))] = None,
    top_p: Annotated[float | None, typer.Option(help=tell("lm_top_p"))] = None,
    device: Device = "auto",
    threads: Threads = None,
    seed: Annotated[int, typer.Option(help=tell("lm_seed_text"))] = 0,
    as_json: Json = False,
) -> None:
    """Write what follows the prompt, as it is chosen."""
    import torch

    from ..language.generate import stream as sample

    decoder, codec, folder = _load(model, device, threads)
    start = codec.encode(prompt).tolist() or [codec.eos_id]
    ids: list[int] = []
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    for step in sample(
        decoder,
        torch.tensor([start]),
        max_new_tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_ids=[codec.eos_id],
    ):
        chosen = int(step.tokens[0])
        if chosen == codec.eos_id:
            break
        ids.append(chosen)
        if not as_json:
            typer.echo(decode(codec.decode_bytes([chosen])), nl=False)
    text = codec.decode(ids)
    if as_json:
        print_json(
            {
                "model": str(folder),
                "prompt": prompt,
                "text": text,
                "tokens": len(ids),
                "stopped": len(ids) < tokens,
                "seed": seed,
            }
        )
    else:
        typer.echo(decode(b"", True))


def _shape(preset: str, config: Path | None) -> DecoderConfig:
    """Return the shape asked for."""
    from ..language.decoder import PRESETS, DecoderConfig

    if config is not None:
        return DecoderConfig.load(config)
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(PRESETS)}"
        raise UsageError(f"there is no preset {preset!r}", hint=hint)
    return PRESETS[preset]


def _tokenizer(kind: str, texts: list[Path], out: Path, vocab_size: int, field: str) -> TextTokenizer:
    from ..language.bpe import tokenizer_from_files
    from ..language.bytes import ByteTokenizer

    if kind == "bytes":
        return ByteTokenizer()
    return tokenizer_from_files(texts, out, vocab_size=vocab_size, field=field)


def _load(model: Path, device: str, threads: int | None) -> tuple[Decoder, TextTokenizer, Path]:
    """Return a trained model, its tokenizer, and where they were found: in the folder or in its ``final``."""
    import torch

    from ..language.bpe import load_tokenizer
    from ..language.decoder import Decoder
    from ..pretrained import CONFIG_NAME
    from ..training import FINAL_NAME, MAX_THREADS, pick_device

    if threads is not None:
        if not 1 <= threads <= MAX_THREADS:
            raise UsageError(f"--threads {threads}, expected 1 to {MAX_THREADS}", hint="leave it out")
        torch.set_num_threads(threads)
    final = model / FINAL_NAME
    folder = final if (final / CONFIG_NAME).is_file() and not (model / CONFIG_NAME).is_file() else model
    return Decoder.from_pretrained(folder, device=pick_device(device)), load_tokenizer(folder), folder


def _planned(out: Path) -> int | None:
    """Return the length in steps of a run under way; a finished one, too, keeps it."""
    from ..training import CHECKPOINT_NAME, read_checkpoint

    if not (out / CHECKPOINT_NAME).exists():
        return DEFAULT_STEPS
    steps = read_checkpoint(out)[0]["steps"]
    return None if steps is None else int(steps)


def _lengths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UsageError(f"--lengths {text!r} is not a list of numbers", hint="e.g. --lengths 128,512,2048") from error


def _progress(windows: int) -> Callable[[int, int], None]:
    """Return a line of progress on stderr, in a terminal only."""

    def show(length: int, done: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done == windows else ""
            sys.stderr.write(f"\r{tell('lm_progress', length=length, done=done, windows=windows)}{end}")
            sys.stderr.flush()

    return show
