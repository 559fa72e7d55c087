"""``huaben draw PROMPT``: one picture from one description."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .main import print_json
from .progress import Steps
from .sizes import parse_size
from .texts import tell
from .words import language, say


def command(
    prompt: Annotated[str, typer.Argument(help=tell("draw_prompt"))],
    seed: Annotated[int | None, typer.Option(help=tell("draw_seed"))] = None,
    size: Annotated[str, typer.Option(metavar="HxW", help=tell("size"))] = "256x256",
    steps: Annotated[int, typer.Option(help=tell("steps"))] = 20,
    guidance: Annotated[float, typer.Option(help=tell("draw_guidance"))] = 3.0,
    negative: Annotated[str, typer.Option(help=tell("draw_negative"))] = "",
    attempts: Annotated[int, typer.Option(help=tell("draw_attempts"))] = 3,
    model: Annotated[Path | None, typer.Option(help=tell("draw_model"))] = None,
    out: Annotated[Path | None, typer.Option(help=tell("draw_out"))] = None,
    as_json: Annotated[bool, typer.Option("--json", help=say("json"))] = False,
) -> None:
    """Draw one picture."""
    import secrets
    import time

    from ..dialogue import Conversation, Message
    from ..errors import DialogueError
    from ..pictures import write_picture
    from ..rng import check_seed
    from ..session import drawing_prompt, picture_metadata
    from ..stages.embedded import Screenwriter
    from ..stations import Stations
    from ..theater.cast import Cast
    from ..theater.performance import PerformanceConfig, perform

    started = time.perf_counter()
    asked = check_seed(secrets.randbits(31) if seed is None else seed)
    config = PerformanceConfig(size=parse_size(size), steps=steps, guidance_scale=guidance, attempts=attempts)
    conversation, message = Conversation(), Message(text=prompt)
    reply = Screenwriter().read(message, conversation)
    if reply.action != "draw" or reply.page is None:
        raise DialogueError(tell("cannot_draw", reply=reply.text), hint=tell("draw_hint"))
    page = conversation.add(message, reply).book.pages[-1]
    if negative:
        page = page.replace(negative=", ".join(part for part in (page.negative, negative) if part))
    stations = Stations(model=model)
    path = out or Path(f"huaben-{asked}.png")
    with Steps(attempts=attempts, loading=True) as progress:
        performance = perform(
            page,
            Cast(),
            prompt=drawing_prompt(page, reply.language),
            painter=stations.painter,
            reader=stations.reader,
            seed=asked,
            config=config,
            on_step=progress.step,
        )
    new_folder = not path.parent.exists()
    write_picture(path, performance.image, picture_metadata(performance, asked_seed=asked))
    warnings = [
        *(warning.message(reply.language) for warning in reply.warnings),
        *(note.text(reply.language) for note in performance.warnings),
    ]
    seconds = time.perf_counter() - started
    if new_folder:
        typer.echo(tell("folder_made", folder=path.parent), err=True)
    if as_json:
        print_json(
            {
                "path": str(path),
                "seed": asked,
                "painted_seed": performance.seed,
                "seconds": round(seconds, 3),
                "prompt": performance.request.prompt,
                "reply": reply.text,
                "language": reply.language,
                "page": page.to_public(),
                "attempts": [attempt.to_dict() for attempt in performance.attempts],
                "model": performance.model,
                "warnings": warnings,
            }
        )
        return
    for warning in (note.text(language()) for note in performance.warnings):
        typer.echo(f"{tell('warning')}: {warning}", err=True)
    typer.echo(tell("drawn", path=path, seed=asked, seconds=seconds))
