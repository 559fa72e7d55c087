"""``huaben clip mine``, ``finetune``, ``eval`` and ``inspect``: hard pairs for dual encoders, and what they bring."""

from __future__ import annotations

import contextlib
import difflib
import math
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from .clip_words import tell
from .main import print_json
from .words import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from ..clip.dataset import PairDataset
    from ..clip.dual_encoder import DualEncoder
    from ..clip.hard_pairs import HardPairs
    from ..clip.margin import MarginConfig
    from ..recipes.helip import HelipRecipe
    from ..training import FitResult

app = typer.Typer(help=tell("clip"), no_args_is_help=True, add_completion=False, rich_markup_mode=None)

METHODS, MODALITIES = ("exact", "fast", "ann"), ("both", "image", "text")
PARTNERS, OBJECTIVES = ("mined", "random", "none"), ("contrastive", "siglip", "slip")
MARGIN_NAMES = ("default", "paper", "released")
PASSES = 2  # over all seeds, where no length is given
SKIPPED_SHOWN = 5
ALARM_TEXT = "closer than the hard pairs"

Batch = Annotated[int, typer.Option(help=tell("clip_batch_encode"))]
CaptionColumns = Annotated[str | None, typer.Option(help=tell("clip_caption_columns"))]
Device = Annotated[str, typer.Option(help=tell("clip_device"))]
Download = Annotated[bool, typer.Option("--download", help=tell("clip_download"))]
ImageColumn = Annotated[str | None, typer.Option(help=tell("clip_image_column"))]
Json = Annotated[bool, typer.Option("--json", help=say("json"))]
KeyColumn = Annotated[str | None, typer.Option(help=tell("clip_key_column"))]
Languages = Annotated[str | None, typer.Option(help=tell("clip_languages"))]
Seed = Annotated[int, typer.Option(help=tell("clip_seed"))]
Split = Annotated[str | None, typer.Option(help=tell("clip_split"))]
Threads = Annotated[int | None, typer.Option(help=tell("clip_threads"))]


@app.command("mine", help=tell("clip_mine"))
def mine(
    features: Annotated[Path | None, typer.Argument(help=tell("clip_features"))] = None,
    data: Annotated[str | None, typer.Option(help=tell("clip_data_mine"))] = None,
    model: Annotated[str, typer.Option(help=tell("clip_model"))] = "embedded",
    out: Annotated[Path, typer.Option(help=tell("clip_out_pairs"))] = Path("pairs.npz"),
    k: Annotated[int, typer.Option("--k", help=tell("clip_k"))] = 50,
    method: Annotated[str, typer.Option(help=tell("clip_method"))] = "exact",
    candidates: Annotated[int | None, typer.Option(help=tell("clip_candidates"))] = None,
    low: Annotated[float, typer.Option(help=tell("clip_low"))] = 0.0,
    duplicate: Annotated[float, typer.Option(help=tell("clip_duplicate"))] = 0.98,
    center: Annotated[bool, typer.Option("--center", help=tell("clip_center"))] = False,
    skip_top: Annotated[int, typer.Option(help=tell("clip_skip_top"))] = 0,
    rank_stride: Annotated[int, typer.Option(help=tell("clip_rank_stride"))] = 1,
    modality: Annotated[str, typer.Option(help=tell("clip_modality"))] = "both",
    captions: Annotated[str, typer.Option(help=tell("clip_captions"))] = "mean",
    memory_mb: Annotated[float, typer.Option(help=tell("clip_memory"))] = 1024.0,
    batch: Batch = 64,
    resume: Annotated[bool, typer.Option("--resume", help=tell("clip_resume"))] = False,
    image_column: ImageColumn = None,
    caption_columns: CaptionColumns = None,
    key_column: KeyColumn = None,
    split: Split = None,
    download: Download = False,
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Mine features, or data whose features are extracted first."""
    from ..clip.features import load_features
    from ..clip.mining import mine_hard_pairs

    _choice("--method", method, METHODS)
    _choice("--modality", modality, MODALITIES)
    _choice("--captions", captions, ("mean", "first"))
    if (features is None) == (data is None):
        raise UsageError("expected features or --data, one of them", hint="huaben clip mine FEATURES.npz --k 50")
    if features is not None and features.resolve() == out.resolve():
        raise UsageError(f"--out {out} is the features file itself", hint="give another file to write the pairs into")
    begun = time.perf_counter()
    skipped = 0
    if data is not None:
        _set_threads(threads)
        pairs_data = _open(data, image_column, caption_columns, key_column, split)
        skipped = len(pairs_data.report.skipped)
        features = out.with_name(f"{out.stem}.features{out.suffix}")
        encoder = _encoder(model, device, download)
        _extract(encoder, pairs_data, features, captions, batch, resume)
    assert features is not None
    found = load_features(features)
    work = out.with_name(f".{out.name}.mining")
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    pairs = mine_hard_pairs(
        found.image,
        found.text,
        k,
        method=method,  # type: ignore[arg-type]  # checked above
        candidates=candidates,
        seed=seed,
        low=low,
        duplicate=duplicate,
        center=center,
        skip_top=skip_top,
        rank_stride=rank_stride,
        modality=modality,  # type: ignore[arg-type]
        memory_mb=memory_mb,
        threads=threads,
        progress=_progress(),
        resume=None if method == "ann" else work,
        keys=None if found.keys is None else found.keys.tolist(),
    )
    shutil.rmtree(work, ignore_errors=True)
    pairs.save(out)
    seconds = time.perf_counter() - begun
    facts = pairs.statistics()
    if as_json:
        print_json(
            {
                "out": str(out),
                "features": str(features),
                "skipped": skipped,
                "seconds": round(seconds, 3),
                **facts,
                "settings": pairs.settings,
            }
        )
        return
    typer.echo(
        tell(
            "clip_mined",
            pairs=len(pairs),
            k=pairs.k,
            certified=facts["certified"],
            outliers=int(pairs.outlier.sum()),
            seconds=seconds,
            out=out,
        ),
        err=True,
    )
    for line in _lines(facts):
        typer.echo(line)


@app.command("finetune", help=tell("clip_finetune"))
def finetune(
    ctx: typer.Context,
    data: Annotated[str, typer.Argument(help=tell("clip_data"))],
    model: Annotated[str, typer.Option(help=tell("clip_model"))] = "embedded",
    pairs: Annotated[Path | None, typer.Option(help=tell("clip_pairs"))] = None,
    mine_with: Annotated[str | None, typer.Option("--mine", help=tell("clip_mine_method"))] = None,
    k: Annotated[int, typer.Option("--k", help=tell("clip_k"))] = 50,
    candidates: Annotated[int | None, typer.Option(help=tell("clip_candidates"))] = None,
    partners: Annotated[str, typer.Option(help=tell("clip_partners"))] = "mined",
    hard_per_seed: Annotated[int, typer.Option(help=tell("clip_hard_per_seed"))] = 1,
    k_use: Annotated[int | None, typer.Option(help=tell("clip_k_use"))] = None,
    drop_outliers: Annotated[bool, typer.Option("--drop-outliers", help=tell("clip_drop_outliers"))] = False,
    drop_short: Annotated[bool, typer.Option("--drop-short", help=tell("clip_drop_short"))] = False,
    margin: Annotated[str, typer.Option(help=tell("clip_margin", names=", ".join(MARGIN_NAMES)))] = "default",
    gamma: Annotated[float | None, typer.Option(help=tell("clip_gamma"))] = None,
    objective: Annotated[str, typer.Option(help=tell("clip_objective"))] = "contrastive",
    augment: Annotated[str, typer.Option(help=tell("clip_augment"))] = "none",
    out: Annotated[Path, typer.Option(help=tell("clip_out"))] = Path("runs/clip-helip"),
    steps: Annotated[int | None, typer.Option(help=tell("clip_steps", passes=PASSES))] = None,
    batch: Annotated[int, typer.Option(help=tell("clip_batch"))] = 128,
    learning_rate: Annotated[float, typer.Option(help=tell("clip_rate"))] = 3e-4,
    valid: Annotated[str | None, typer.Option(help=tell("clip_valid"))] = None,
    control: Annotated[bool, typer.Option("--control", help=tell("clip_control"))] = False,
    no_alarm: Annotated[bool, typer.Option("--no-alarm", help=tell("clip_no_alarm"))] = False,
    resume: Annotated[bool, typer.Option("--resume", help=tell("clip_resume"))] = False,
    languages: Languages = None,
    image_column: ImageColumn = None,
    caption_columns: CaptionColumns = None,
    key_column: KeyColumn = None,
    split: Split = None,
    cache_mb: Annotated[float, typer.Option(help=tell("clip_cache"))] = 1024.0,
    bf16: Annotated[bool, typer.Option("--bf16", help=tell("clip_bf16"))] = False,
    download: Download = False,
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Continue training; under torchrun, with all its processes."""
    from ..files import folder_lock
    from ..recipes.distributed import fit_distributed, is_main_process, main_process_first
    from ..recipes.helip import HelipRecipe, helip_fit, retrieval_scores
    from ..recipes.views import named_augment
    from ..training import CHECKPOINT_NAME

    _choice("--partners", partners, PARTNERS)
    _choice("--objective", objective, OBJECTIVES)
    variant = _margin(margin, gamma, partners)
    _check_lists_asked(partners, pairs, mine_with)
    if is_main_process():
        ctx.with_resource(folder_lock(out, "training"))
    _set_threads(threads)
    columns = (image_column, caption_columns, key_column, split)
    pairs_data = _open(data, *columns, quiet=not is_main_process())
    held_out = None if valid is None else _open(valid, *columns[:3], None, quiet=not is_main_process())
    spoken = _spoken(languages, pairs_data)
    under_way = resume and (out / CHECKPOINT_NAME).exists()
    if not under_way and (out / CHECKPOINT_NAME).exists():
        raise UsageError(f"{out} already holds a training run", hint="add --resume, or choose another --out")
    with main_process_first(device):
        lists = None
        if partners == "mined":
            lists = _lists(pairs, mine_with, out, pairs_data, model, device, download, k, candidates, seed, under_way)
    planned = steps
    if steps is None:
        planned = _planned(out) if under_way else math.ceil(PASSES * len(pairs_data) * (1 + hard_per_seed) / batch)
    changes: dict[str, Any] = {} if threads is None else {"threads": threads}
    source = _model_source(model)

    def recipe(**values: Any) -> HelipRecipe:
        arguments = {
            "pairs": lists,
            "partners": partners,
            "hard_per_seed": hard_per_seed,
            "k_use": k_use,
            "margin": variant,
            "drop_outliers": drop_outliers,
            "drop_short": drop_short,
            "objective": objective,
            "batch_size": batch,
            "augment": named_augment(augment),
            "languages": spoken,
            "alarm": not no_alarm,
            "cache_mb": cache_mb,
            "fit": helip_fit(steps=planned, learning_rate=learning_rate, seed=seed, bf16=bf16, **changes),
            "seed": seed,
            "valid": held_out,
        }
        return HelipRecipe(lambda: _encoder(source, "cpu", download), pairs_data, **(arguments | values))

    def train(it: HelipRecipe, folder: Path) -> FitResult:
        going_on = resume and (folder / CHECKPOINT_NAME).exists()
        length = None if going_on and steps is None else planned
        with _alarms_told(it):
            return fit_distributed(it, folder, steps=length, resume=resume, device=device)

    main_recipe = recipe()
    before: dict[str, float] = {}
    if held_out is not None and is_main_process():
        before = retrieval_scores(_encoder(source, device, download), held_out, spoken)
    result = train(main_recipe, out)
    plain: FitResult | None = None
    if control:
        unmixed = {"partners": "none", "pairs": None, "margin": None, "k_use": None}
        plain = train(recipe(**unmixed, drop_outliers=False, drop_short=False), out / "control")
    if not is_main_process():
        return
    if as_json:
        print_json(
            {
                "folder": str(result.folder),
                "model": model,
                "data": data,
                "pairs": len(pairs_data),
                "skipped": len(pairs_data.report.skipped),
                "steps": result.steps,
                "samples": result.steps * batch,
                "seconds": round(result.seconds, 3),
                "settings": main_recipe.settings,
                "terms": result.terms,
                "before": before,
                "scores": result.scores,
                "control": None if plain is None else {"folder": str(plain.folder), "scores": plain.scores},
            }
        )
        return
    typer.echo(
        tell(
            "clip_trained",
            steps=result.steps,
            samples=batch,
            minutes=result.seconds / 60,
            folder=result.folder,
        ),
        err=True,
    )
    for name, value in result.scores.items():
        line = f"{name}: {value:.4f}  {tell('clip_base')} {before[name]:.4f}"
        typer.echo(line if plain is None else f"{line}  {tell('clip_plain')} {plain.scores[name]:.4f}")


@app.command("eval", help=tell("clip_eval"))
def evaluate(
    model: Annotated[str, typer.Argument(help=tell("clip_model_eval"))],
    data: Annotated[str, typer.Argument(help=tell("clip_data"))],
    classes: Annotated[str | None, typer.Option(help=tell("clip_classes"))] = None,
    templates: Annotated[str, typer.Option(help=tell("clip_templates"))] = "general",
    train: Annotated[str | None, typer.Option(help=tell("clip_train_data"))] = None,
    languages: Languages = None,
    image_column: ImageColumn = None,
    caption_columns: CaptionColumns = None,
    key_column: KeyColumn = None,
    split: Split = None,
    train_split: Annotated[str | None, typer.Option(help=tell("clip_train_split"))] = None,
    batch: Batch = 64,
    download: Download = False,
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Judge a model on captioned pictures."""
    from ..clip.dual_encoder import encode_all_images
    from ..recipes.helip import retrieval_scores

    if train is not None and classes is None:
        raise UsageError("--train needs the classes of its pictures", hint="add --classes COLUMN")
    _set_threads(threads)
    pairs_data = _open(data, image_column, caption_columns, key_column, split)
    labelled = None if classes is None else _open(data, image_column, classes, key_column, split)
    learned = None if train is None else _open(train, image_column, classes, key_column, train_split)
    encoder = _encoder(model, device, download)
    images = encode_all_images(encoder, (pairs_data.image(row) for row in range(len(pairs_data))), batch)
    result: dict[str, Any] = {
        "model": model,
        "data": data,
        "pairs": len(pairs_data),
        "skipped": len(pairs_data.report.skipped),
        "retrieval": retrieval_scores(encoder, pairs_data, _spoken(languages, pairs_data), batch=batch, images=images),
    }
    if labelled is not None:
        result["zero_shot"], rows, names = _zero_shot(encoder, images, pairs_data, labelled, templates)
        if learned is not None:
            result["linear_probe"] = _probe(encoder, images[rows], names, learned, batch, seed)
    if as_json:
        print_json(result)
        return
    typer.echo(tell("clip_evaluated", model=model, data=data, pairs=len(pairs_data)), err=True)
    for name, value in result["retrieval"].items():
        typer.echo(f"{name}: {value:.4f}")
    for language, scores in result.get("zero_shot", {}).items():
        if isinstance(scores, dict):
            for name, value in scores.items():
                typer.echo(f"{tell('clip_zero_shot')} {name}_{language}: {value:.4f}")
    if "linear_probe" in result:
        typer.echo(f"{tell('clip_probe')}: {result['linear_probe']['accuracy']:.4f}")


@app.command("inspect", help=tell("clip_inspect"))
def inspect(
    pairs: Annotated[Path, typer.Argument(help=tell("clip_pairs"))],
    data: Annotated[str | None, typer.Option(help=tell("clip_data_gallery"))] = None,
    html: Annotated[Path | None, typer.Option(help=tell("clip_html"))] = None,
    count: Annotated[int, typer.Option(help=tell("clip_number"))] = 48,
    image_column: ImageColumn = None,
    caption_columns: CaptionColumns = None,
    key_column: KeyColumn = None,
    split: Split = None,
    as_json: Json = False,
) -> None:
    """Describe mined pairs, and write a page of those to doubt."""
    import numpy as np

    from ..clip.features import match_keys
    from ..clip.hard_pairs import HardPairs
    from ..pretrained import write_atomic
    from .clip_gallery import gallery, key_of, likely_false_negatives, likely_mispaired

    if count < 0:
        raise UsageError(f"--count {count} is negative", hint="use 48")
    lists = HardPairs.load(pairs)
    shown, rows = None, None
    if data is not None:
        shown = _open(data, image_column, caption_columns, key_column, split)
        if lists.keys is None:
            lists.check(len(shown))
            rows = np.arange(len(shown))
        else:
            rows = match_keys(shown.keys(), lists.keys)
    facts = lists.statistics()
    page = html or pairs.with_name(f"{pairs.stem}.html")
    settings = {name: value for name, value in lists.settings.items() if not isinstance(value, dict)}
    lines = [*_lines(facts), *(f"{name}: {value}" for name, value in settings.items())]
    write_atomic(page, gallery(lists, shown, rows, count, lines).encode())
    if as_json:
        doubts = [
            {
                "pair": key_of(lists, doubt.row),
                "partner": key_of(lists, doubt.partner),
                "score": doubt.score,
                "mutual": doubt.mutual,
            }
            for doubt in likely_false_negatives(lists, count)
        ]
        odd = [key_of(lists, int(row)) for row in likely_mispaired(lists, count)]
        print_json(
            {
                "pairs": str(pairs),
                "html": str(page),
                **facts,
                "settings": lists.settings,
                "doubtful": doubts,
                "mispaired": odd,
            }
        )
        return
    typer.echo(tell("clip_inspected", pairs=len(lists), k=lists.k, html=page), err=True)
    for line in lines:
        typer.echo(line)


# -- what the commands share -------------------------------------------------------------------------------------------


def _choice(flag: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"
        raise UsageError(f"{flag} {value!r} is none of {', '.join(known)}", hint=hint)


def _check_lists_asked(partners: str, pairs: Path | None, method: str | None) -> None:
    """Check where the hard pairs are to come from."""
    if method is not None:
        _choice("--mine", method, METHODS)
    given = (pairs is not None) + (method is not None)
    if partners == "mined" and given != 1:
        raise UsageError(
            "expected --pairs or --mine, one of them", hint="e.g. --mine exact; --partners none trains without"
        )
    if partners != "mined" and given:
        raise UsageError(f"--partners {partners} uses no mined pairs", hint="leave out --pairs and --mine")


def _margin(name: str, gamma: float | None, partners: str) -> MarginConfig | None:
    """Return the margin loss asked for, if there are partners to hold it to."""
    from ..clip.margin import MARGINS

    _choice("--margin", name, MARGIN_NAMES)
    if partners == "none":
        if gamma:
            raise UsageError(f"--gamma {gamma} without partners", hint="use --partners mined")
        return None
    config = MARGINS[name] if gamma is None else MARGINS[name].replace(gamma=gamma)
    return config if config.gamma else None


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        if threads < 1:
            raise UsageError(f"--threads {threads} is below 1", hint="leave it out for torch's own number")
        torch.set_num_threads(threads)


def _open(
    source: str,
    image_column: str | None,
    caption_columns: str | None,
    key_column: str | None,
    split: str | None,
    *,
    quiet: bool = False,
) -> PairDataset:
    """Open data, and say what was left out."""
    from ..clip.dataset import open_pairs

    names = None if caption_columns is None else _names(caption_columns, "--caption-columns")
    data = open_pairs(source, image_column=image_column, caption_columns=names, key_column=key_column, split=split)
    skipped = data.report.skipped
    if skipped and not quiet:
        typer.echo(tell("clip_read", name=data.name, read=len(data), skipped=len(skipped)), err=True)
        for key, reason in skipped[:SKIPPED_SHOWN]:
            typer.echo(tell("clip_skipped", name=key, reason=reason), err=True)
        if len(skipped) > SKIPPED_SHOWN:
            typer.echo(tell("clip_skipped_more", count=len(skipped) - SKIPPED_SHOWN), err=True)
    return data


def _names(text: str, flag: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"{flag} {text!r} names nothing", hint=f"e.g. {flag} first,second")
    return names


def _spoken(languages: str | None, data: PairDataset) -> list[str]:
    """Return the languages asked for, or all that the data has."""
    if languages is None:
        return [language for language, count in data.languages().items() if count]
    names = _names(languages, "--languages")
    for name in names:
        _choice("--languages", name, ("en", "zh", "other"))
    return names


def _model_source(model: str) -> str:
    """Return where the model is: a run's folder has it in ``final``."""
    from ..pretrained import CONFIG_NAME
    from ..training import FINAL_NAME

    folder = Path(model)
    if folder.is_dir() and (folder / FINAL_NAME).is_dir() and not (folder / CONFIG_NAME).is_file():
        return str(folder / FINAL_NAME)
    return model


def _encoder(model: str, device: str, download: bool) -> DualEncoder:
    from ..clip.dual_encoder import load_dual_encoder
    from ..training import pick_device

    return load_dual_encoder(_model_source(model), pick_device(device), download=download)


def _extract(encoder: DualEncoder, data: PairDataset, out: Path, captions: str, batch: int, resume: bool) -> None:
    from ..clip.features import extract_features

    extract_features(
        encoder,
        data,
        out,
        batch=batch,
        captions=captions,  # type: ignore[arg-type]  # checked by the caller
        resume=resume,
        progress=_progress(),
    )


def _lists(
    pairs: Path | None,
    method: str | None,
    out: Path,
    data: PairDataset,
    model: str,
    device: str,
    download: bool,
    k: int,
    candidates: int | None,
    seed: int,
    under_way: bool,
) -> HardPairs:
    """Return the mined pairs: read, or mined once by the first process and kept in the run's folder."""
    from ..clip.features import load_features
    from ..clip.hard_pairs import HardPairs
    from ..clip.mining import mine_hard_pairs
    from ..recipes.distributed import is_main_process

    if pairs is not None:
        return HardPairs.load(pairs)
    path = out / "pairs.npz"
    if (under_way and path.exists()) or not is_main_process():
        return HardPairs.load(path)
    _extract(_encoder(model, device, download), data, out / "features.npz", "mean", 64, False)
    found = load_features(out / "features.npz")
    assert found.keys is not None
    lists = mine_hard_pairs(
        found.image,
        found.text,
        k,
        method=method,  # type: ignore[arg-type]  # checked before
        candidates=candidates,
        seed=seed,
        progress=_progress(),
        keys=found.keys.tolist(),
    )
    lists.save(path)
    return lists


def _planned(out: Path) -> int | None:
    """Return the length in steps of a run under way."""
    from ..training import read_checkpoint

    steps = read_checkpoint(out)[0]["steps"]
    return None if steps is None else int(steps)


@contextlib.contextmanager
def _alarms_told(recipe: HelipRecipe) -> Iterator[None]:
    """Show the margin loss's warning in the language of the command line; others as ever."""
    from ..recipes.distributed import is_main_process

    with warnings.catch_warnings():
        show = warnings.showwarning

        def told(message: Warning | str, *rest: Any, **named: Any) -> None:
            watch = recipe.watch
            if ALARM_TEXT not in str(message) or watch is None:
                show(message, *rest, **named)
            elif is_main_process():
                typer.echo(tell("clip_alarm", mean=watch.mean, random=watch.random), err=True)

        warnings.filterwarnings("always", message=f".*{ALARM_TEXT}")
        warnings.showwarning = told
        yield


def _zero_shot(
    encoder: DualEncoder, images: NDArray[np.float32], data: PairDataset, labelled: PairDataset, templates: str
) -> tuple[dict[str, Any], NDArray[np.int64], list[str]]:
    """Return the scores by language, the rows that have a class, and these classes."""
    import numpy as np

    from ..clip.features import match_keys
    from ..clip.zero_shot import TEMPLATES, zero_shot

    _choice("--templates", templates, tuple(TEMPLATES))
    at = match_keys(labelled.keys(), data.keys(), minimum=0.5)
    rows = np.flatnonzero(at >= 0)
    said = [labelled.captions(int(row)) for row in at[rows]]
    names = [captions[0].text for captions in said]
    order = list(dict.fromkeys(names))
    called: dict[str, dict[str, str]] = {}  # language -> class -> its name there
    for name, captions in zip(names, said, strict=True):
        for caption in captions:
            called.setdefault(caption.language, {}).setdefault(name, caption.text)
    classes = {
        language: [known[name] for name in order] for language, known in called.items() if len(known) == len(order)
    }
    sentences = {language: TEMPLATES[templates].get(language, ("{}",)) for language in classes}
    labels = np.array([order.index(name) for name in names])
    return zero_shot(encoder, images[rows], labels, classes, templates=sentences), rows, names


def _probe(
    encoder: DualEncoder, images: NDArray[np.float32], names: list[str], learned: PairDataset, batch: int, seed: int
) -> dict[str, Any]:
    """Return a linear probe's scores, learned on other pictures."""
    from ..clip.dual_encoder import encode_all_images
    from ..clip.probe import linear_probe

    rows = range(len(learned))
    train_names = [learned.captions(row)[0].text for row in rows]
    train_images = encode_all_images(encoder, (learned.image(row) for row in rows), batch)
    return linear_probe(train_images, train_names, images, names, seed=seed)


def _lines(facts: dict[str, Any], prefix: str = "") -> list[str]:
    """Return ``name: value`` lines of nested statistics; the innermost ones share a line."""
    lines: list[str] = []
    for name, value in facts.items():
        if not isinstance(value, dict):
            lines.append(f"{prefix}{name}: {_shown(value)}")
        elif any(isinstance(inner, dict) for inner in value.values()):
            lines += _lines(value, f"{prefix}{name} ")
        else:
            lines.append(f"{prefix}{name}: " + ", ".join(f"{key} {_shown(inner)}" for key, inner in value.items()))
    return lines


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _progress() -> Callable[[int, int], None]:
    """Return a line of progress on stderr, in a terminal only."""

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done >= total else ""
            sys.stderr.write(f"\r{tell('clip_progress', done=done, total=total)}{end}")
            sys.stderr.flush()

    return show
