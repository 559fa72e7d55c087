"""One conversation and its pictures: the only place that names the stations of a message in order.

message -> screenwriter (what was meant; the new page) -> performance (cast, painter, reader) -> stored turn.

A session lives in a folder::

    session.json          format, seed and settings
    turns.jsonl           one finished turn a line
    turn-0001.png         its picture, if it drew one
    upload-0001.png       the picture the user gave with it, re-encoded
    state/0001.json       book, dialogue state, cast and attempts after it
    cast/HASH.png         cut-outs of the characters

A turn is finished when its line is in ``turns.jsonl``; everything else is written before, whole or not at all. So a
process killed at any moment loses no finished turn, and a failed or cancelled turn leaves the session as it was.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from .config import Config
from .dialogue.message import Conversation, Message, Reply, clean_text, detect_language
from .errors import ConfigError, StoreError
from .files import append_line, folder_lock, sweep_parts, write_bytes
from .notices import Notice, notice
from .pictures import png_bytes, read_picture
from .promptbook.book import Page
from .rng import check_seed, stream_seed
from .stages.embedded.layout import find_key, scene_to_page
from .stages.embedded.words import WHERE, people
from .stations import Stations
from .theater.cast import Cast
from .theater.performance import MAX_PICTURE_SEED, Performance, PerformanceConfig, entry_of, perform
from .world.scene import MAX_CHARACTERS
from .world.vocabulary import BACKGROUNDS, STYLES, Language, term

if TYPE_CHECKING:
    from .painting import Progress, ShouldCancel

FORMAT_VERSION = 1
TURNS_NAME = "turns.jsonl"
SESSION_NAME = "session.json"
UPLOAD_SIDE = 512
"""Pixels of a stored upload's longer side."""
CONFIDENT = 0.3
"""Score above which a character in a user's picture is taken for seen."""

Action = Literal["draw", "recall", "chat", "ask", "refuse"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn(Config):
    """One finished turn, as ``turns.jsonl`` has it.

    Attributes:
        turn: from 1.
        action: draw | recall | chat | ask | refuse.
        reply: what was answered.
        prompt: the drawing prompt; empty if nothing was drawn.
        page: the state after the turn, in its public form.
        image: file name in the session's folder, or None.
        seed: of the picture, or None.
        seconds: from message to stored turn.
        warnings: announcements in the language of the message.
    """

    turn: int
    action: Action
    reply: str
    prompt: str
    page: dict[str, Any]
    image: str | None = None
    seed: int | None = None
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionConfig(Config):
    """Settings of a session, fixed when it begins.

    Attributes:
        seed: everything random in it comes from here.
        performance: how pages are painted.
    """

    seed: int = 0
    performance: PerformanceConfig = field(default_factory=PerformanceConfig)

    def __post_init__(self) -> None:
        check_seed(self.seed)


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """Progress of a turn.

    Attributes:
        kind: ``understood`` (what was meant is known), ``step`` (one denoising step), ``stored``.
        turn: the turn.
        attempt: from 0; of ``step``.
        progress: of ``step``.
    """

    kind: Literal["understood", "step", "stored"]
    turn: int
    attempt: int = 0
    progress: Progress | None = None


OnEvent = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Memory:
    """What a session remembers beside its turns; ``pictures`` maps pages of the book to file names."""

    conversation: Conversation = field(default_factory=Conversation)
    cast: Cast = field(default_factory=Cast)
    pictures: tuple[tuple[int, str], ...] = ()

    def picture_of(self, page: int | None) -> str | None:
        """Return the picture of a page of the book."""
        return dict(self.pictures).get(-1 if page is None else page)

    def with_picture(self, page: int, name: str) -> _Memory:
        """Return the memory with one more picture."""
        return replace(self, pictures=(*self.pictures, (page, name)))


def read_turns(folder: str | Path) -> list[dict[str, Any]]:
    """Return the finished turns of a folder with the messages they answered; no lock, nothing is changed.

    Raises:
        StoreError: if a line other than a torn last one is not a turn.
    """
    folder = Path(folder)
    turns, _ = _parse_turns(folder / TURNS_NAME)
    for turn in turns:
        try:
            turn["message"] = _read_json(_state_path(folder, turn["turn"])).get("message", "")
        except StoreError:
            turn["message"] = ""
    return turns


class Session:
    """One conversation in one folder, held by one process.

    Use :meth:`open`, and :func:`run_turn` for every message; close it, or use it as a context manager.
    """

    def __init__(
        self,
        folder: Path,
        config: SessionConfig,
        stations: Stations,
        turns: tuple[Turn, ...],
        memory: _Memory,
        notices: tuple[Notice, ...],
        lock: ExitStack,
    ) -> None:
        self.folder, self.config, self.stations = folder, config, stations
        self.turns, self._memory = turns, memory
        self.notices = notices
        self._lock = lock

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        seed: int | None = None,
        create: bool = True,
        config: PerformanceConfig | None = None,
        stations: Stations | None = None,
    ) -> Self:
        """Begin a session in ``folder``, or go on with the one that is there: book, cast, seed and settings restored.

        Args:
            folder: of the session.
            seed: of a new session, 0 by default; an existing session keeps its own.
            create: False refuses a folder without a session.
            config: how pages are painted; an existing session keeps its own.
            stations: who does what; the embedded parts by default.

        Raises:
            StoreError: if the folder is in use, unreadable, or has no session and ``create`` is False.
            ConfigError: if an existing session has another seed than ``seed``.
        """
        folder = Path(folder)
        if not create and not (folder / SESSION_NAME).is_file():
            raise StoreError(f"{folder} has no session", hint="check the path, or leave create out to begin one")
        with ExitStack() as lock:
            lock.enter_context(folder_lock(folder, "huaben"))
            sweep_parts(folder, folder / "state", folder / "cast")
            settings = _open_settings(folder, seed, config)
            turns, notices = _recover_turns(folder)
            _refuse_lost_turns(folder, len(turns))
            memory, unreadable = _open_memory(folder, len(turns))
            notices += unreadable
            return cls(folder, settings, stations or Stations(), turns, memory, notices, lock.pop_all())

    def __enter__(self) -> Self:
        """Return the session."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Let go of the folder; the session cannot be used afterwards."""
        self._lock.close()

    @property
    def conversation(self) -> Conversation:
        """Everything said so far, and the prompt book."""
        return self._memory.conversation

    @property
    def cast(self) -> Cast:
        """Every character that was recognised."""
        return self._memory.cast

    @property
    def page(self) -> Page | None:
        """The page the next message starts from."""
        return self._memory.conversation.page

    def _add(self, turn: Turn, memory: _Memory) -> None:
        """Go on from a finished turn."""
        self.turns, self._memory = (*self.turns, turn), memory

    def picture(self, name: str) -> npt.NDArray[np.uint8]:
        """Return one of the session's pictures by its file name."""
        return read_picture(self.folder / Path(name).name)


def _open_settings(folder: Path, seed: int | None, config: PerformanceConfig | None) -> SessionConfig:
    """Read session.json, or write a new one."""
    path = folder / SESSION_NAME
    if path.is_file():
        values = _read_json(path)
        if values.pop("format_version", None) != FORMAT_VERSION:
            raise StoreError(f"{path} is of another format version", hint="open it with the huaben that wrote it")
        try:
            settings = SessionConfig.from_dict(values)
        except ConfigError as error:
            raise StoreError(f"{path} cannot be used: {error.message}", hint="restore it from a copy") from error
        if seed is not None and seed != settings.seed:
            raise ConfigError(
                f"the session in {folder} has seed {settings.seed}, asked for {seed}",
                hint="leave the seed out to go on, or use another folder",
            )
        return settings
    if (folder / TURNS_NAME).is_file() and (folder / TURNS_NAME).stat().st_size:
        raise StoreError(f"{folder} has turns but no {SESSION_NAME}", hint="restore it, or use another folder")
    settings = SessionConfig(seed=0 if seed is None else seed, performance=config or PerformanceConfig())
    values = {"format_version": FORMAT_VERSION, **settings.to_dict()}
    write_bytes(path, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())
    return settings


def _parse_turns(path: Path) -> tuple[list[dict[str, Any]], int | None]:
    """Return the turns of a file, and where its torn last line begins (None if it has none).

    Raises:
        StoreError: naming a line that is not the next turn.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}", hint="check its permissions") from error
    turns: list[dict[str, Any]] = []
    start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        line = data[start:] if end < 0 else data[start:end]
        last = end < 0 or end == len(data) - 1
        try:
            value = json.loads(line.decode("utf-8"))
        except ValueError as error:
            if last:
                return turns, start
            raise StoreError(
                f"line {len(turns) + 1} of {path} is not JSON: {error}", hint="restore the file from a copy"
            ) from error
        if not isinstance(value, dict) or value.get("turn") != len(turns) + 1:
            raise StoreError(
                f"line {len(turns) + 1} of {path} is not turn {len(turns) + 1}", hint="restore the file from a copy"
            )
        turns.append(value)
        start = len(data) if end < 0 else end + 1
    return turns, None


def _recover_turns(folder: Path) -> tuple[tuple[Turn, ...], tuple[Notice, ...]]:
    """Read the turns; cut off a torn last line, and end the last whole one."""
    path = folder / TURNS_NAME
    values, torn = _parse_turns(path)
    try:
        if torn is not None:
            with path.open("r+b") as file:
                file.truncate(torn)
        elif values and not path.read_bytes().endswith(b"\n"):
            with path.open("ab") as file:
                file.write(b"\n")
    except OSError as error:
        raise StoreError(f"{path} cannot be repaired: {error.strerror}", hint="check its permissions") from error
    try:
        turns = tuple(Turn.from_dict(value) for value in values)
    except ConfigError as error:
        raise StoreError(f"{path} cannot be used: {error.message}", hint="restore it from a copy") from error
    return turns, (notice("torn_line"),) if torn is not None else ()


def _state_path(folder: Path, turn: int) -> Path:
    """Return the file of the state after a turn."""
    return folder / "state" / f"{turn:04d}.json"


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file of the session."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}", hint="restore the session folder from a copy") from error
    if not isinstance(values, dict):
        raise StoreError(f"{path} holds no object", hint="restore the session folder from a copy")
    return values


def _refuse_lost_turns(folder: Path, turns: int) -> None:
    """Raise StoreError if states of later turns lie there than ``turns.jsonl`` has: they would be overwritten.

    The files of one more turn are what a killed process leaves; they are written again.
    """
    numbers = [int(path.stem) for path in (folder / "state").glob("*.json") if path.stem.isdecimal()]
    if max(numbers, default=0) > turns + 1:
        raise StoreError(
            f"{folder / TURNS_NAME} has {turns} turns, but the state of turn {max(numbers)} is there",
            hint="restore the file from a copy, or use another folder",
        )


def _open_memory(folder: Path, turns: int) -> tuple[_Memory, tuple[Notice, ...]]:
    """Read what was remembered after the last turn."""
    if not turns:
        return _Memory(), ()
    path = _state_path(folder, turns)
    values = _read_json(path)
    if values.get("format_version") != FORMAT_VERSION:
        raise StoreError(f"{path} is of another format version", hint="open it with the huaben that wrote it")
    hint = "restore the session folder from a copy"
    if values.get("turn") != turns:
        raise StoreError(f"{path} is the state of turn {values.get('turn')!r}, expected turn {turns}", hint=hint)
    try:
        conversation = Conversation.from_dict(values["conversation"])
        pictures = tuple((int(page), str(name)) for page, name in values["pictures"])
        cast, notices = Cast.load(folder / "cast", values["cast"])
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path} cannot be used: {error}", hint=hint) from error
    remembered, pages = conversation.memory, len(conversation.book.pages)
    named = {*remembered.trail, *remembered.undone, *remembered.drawn, *(page for page, _ in pictures)}
    beyond = sorted(page for page in named if not 0 <= page < pages)
    if beyond:
        raise StoreError(f"{path} names page {beyond[0]} of a book with {pages} pages", hint=hint)
    missing = sorted({name for _, name in pictures if not (folder / Path(name).name).is_file()})
    notices += tuple(notice("picture_missing", name=name) for name in missing)
    return _Memory(conversation=conversation, cast=cast, pictures=pictures), notices


# ------------------------------------------------------------------------------------------------------ one message


@dataclass(slots=True)
class _Draft:
    """A turn in the making; nothing of it is in the session yet."""

    number: int
    message: Message
    memory: _Memory
    started: float
    reply: Reply | None = None
    notices: list[Notice] = field(default_factory=list)
    upload: npt.NDArray[np.uint8] | None = None
    described: Page | None = None
    performance: Performance | None = None
    prompt: str = ""
    image: str | None = None
    seed: int | None = None


def run_turn(
    session: Session,
    message: Message | str,
    *,
    on_event: OnEvent | None = None,
    should_cancel: ShouldCancel | None = None,
) -> Turn:
    """Answer one message: read it, draw what it asks for, store the turn.

    Args:
        session: an open session; it changes only when the turn is finished.
        message: what the user says.
        on_event: told about progress.
        should_cancel: asked at every denoising step.

    Raises:
        DialogueError: if the message is empty or too long.
        DataError: if its picture cannot be read.
        GenerationError: if the picture cannot be made; Cancelled if the caller asked to stop.
        StoreError: if the turn cannot be written.
    """
    if isinstance(message, str):
        message = Message(text=message)
    message = message.replace(text=clean_text(message.text, has_image=message.image is not None))
    draft = _Draft(len(session.turns) + 1, message, session._memory, time.perf_counter())
    tell = on_event or (lambda event: None)
    _look(session, draft)
    _understand(session, draft)
    tell(Event("understood", draft.number))
    _perform(session, draft, tell, should_cancel)
    turn = _store(session, draft)
    tell(Event("stored", draft.number))
    return turn


def _look(session: Session, draft: _Draft) -> None:
    """Read the user's picture, if there is one: its characters become the page and join the cast."""
    if draft.message.image is None:
        return
    draft.upload = read_picture(draft.message.image, max_side=UPLOAD_SIDE)
    reader = session.stations.reader
    memory = draft.memory
    language = detect_language(draft.message.text, memory.conversation.memory.language)
    page = Page()
    if reader is not None:
        reading = reader.detect([draft.upload], masks=True)[0]
        sure = [character for character in reading.characters if character.score >= CONFIDENT]
        kept = sorted(sure[:MAX_CHARACTERS], key=lambda character: character.box[3])
        if kept:
            if len(sure) > len(kept):
                draft.notices.append(notice("picture_partly", count=len(kept)))
            book = memory.conversation.book
            seen = replace(reading, characters=tuple(kept))
            page = scene_to_page(seen.to_scene(), book=book, language=language)
            cast = memory.cast
            for character, found in zip(page.characters, kept, strict=True):
                entry = entry_of(found, draft.upload, id=character.id, prompt=character.prompt, turn=draft.number)
                cast = cast if entry is None else cast.add(entry)
            index = len(book.pages)
            remembered = memory.conversation.memory
            remembered = remembered.replace(focus=page.ids, trail=(*remembered.trail, index), undone=(), pending=None)
            conversation = memory.conversation.replace(book=book.add(page), memory=remembered)
            memory = replace(memory, conversation=conversation, cast=cast)
            draft.memory = memory.with_picture(index, _upload_name(draft.number))
    if not page.characters:
        draft.notices.append(notice("picture_empty"))
    draft.described = page


def _understand(session: Session, draft: _Draft) -> None:
    """Ask the screenwriter what was meant; a picture without words, or an unknown one, is answered here."""
    remembered = draft.memory.conversation.memory
    seen = draft.described
    if draft.message.text:
        text = draft.message.replace(image=None)
        reply = session.stations.screenwriter.read(text, draft.memory.conversation)
        if seen is None or seen.characters or reply.action in ("draw", "recall"):
            draft.reply = reply
            return
    language = detect_language(draft.message.text, remembered.language)
    draft.reply = Reply(
        action="chat",
        text=_description(seen or Page(), language),
        language=language,
        page=draft.memory.conversation.page,
        memory=remembered.replace(language=language),
    )


def _perform(session: Session, draft: _Draft, tell: OnEvent, should_cancel: ShouldCancel | None) -> None:
    """Draw the page, or find the picture that is asked for again."""
    reply, memory = draft.reply, draft.memory
    assert reply is not None
    conversation = memory.conversation.add(draft.message, reply)
    index = len(conversation.book.pages) - 1
    memory = replace(memory, conversation=conversation)
    if reply.action == "draw" and reply.page is not None:
        page = conversation.book.pages[index]
        draft.prompt = drawing_prompt(page, reply.language)
        stations = session.stations
        draft.performance = perform(
            page,
            memory.cast,
            prompt=draft.prompt,
            painter=stations.painter,
            reader=stations.reader,
            seed=stream_seed(session.config.seed, "turn", draft.number) & MAX_PICTURE_SEED,
            story_seed=session.config.seed,
            turn=draft.number,
            config=session.config.performance,
            on_step=lambda attempt, progress: tell(Event("step", draft.number, attempt, progress)),
            should_cancel=should_cancel,
        )
        draft.notices += draft.performance.warnings
        draft.image, draft.seed = f"turn-{draft.number:04d}.png", draft.performance.seed
        memory = replace(memory, cast=draft.performance.cast).with_picture(index, draft.image)
    elif reply.action == "recall":
        draft.image = memory.picture_of(reply.recalled)
        if draft.image is not None:
            memory = memory.with_picture(index, draft.image)
            before = [turn for turn in session.turns if turn.image == draft.image]
            draft.seed = before[0].seed if before else None
    draft.memory = memory


def _store(session: Session, draft: _Draft) -> Turn:
    """Write everything, the line in turns.jsonl last; only then change the session."""
    reply, folder = draft.reply, session.folder
    assert reply is not None
    performance = draft.performance
    page = draft.memory.conversation.page
    turn = Turn(
        turn=draft.number,
        action=reply.action,
        reply=reply.text,
        prompt=draft.prompt,
        page=(page or Page()).to_public(),
        image=draft.image,
        seed=draft.seed,
        seconds=round(time.perf_counter() - draft.started, 3),
        warnings=(
            *(warning.message(reply.language) for warning in reply.warnings),
            *(note.text(reply.language) for note in draft.notices),
        ),
    )
    state = {
        "format_version": FORMAT_VERSION,
        "turn": draft.number,
        "message": draft.message.text,
        "conversation": draft.memory.conversation.to_dict(),
        "cast": draft.memory.cast.save(folder / "cast"),
        "pictures": [list(pair) for pair in draft.memory.pictures],
        "attempts": [] if performance is None else [attempt.to_dict() for attempt in performance.attempts],
        "model": "" if performance is None else performance.model,
    }
    line = json.dumps(turn.to_dict(), ensure_ascii=False)
    written: list[Path] = []
    try:
        if draft.upload is not None:
            written.append(folder / _upload_name(draft.number))
            write_bytes(written[-1], png_bytes(draft.upload))
        if performance is not None and draft.image is not None:
            written.append(folder / draft.image)
            write_bytes(written[-1], png_bytes(performance.image, picture_metadata(performance, turn=draft.number)))
        written.append(_state_path(folder, draft.number))
        write_bytes(written[-1], (json.dumps(state, ensure_ascii=False) + "\n").encode("utf-8"))
        append_line(folder / TURNS_NAME, line)
    except BaseException:
        if _ends_with(folder / TURNS_NAME, line):  # interrupted after it was on the disk: the turn is finished
            session._add(turn, draft.memory)
        else:
            for path in written:
                if not path.is_dir():
                    path.unlink(missing_ok=True)
        raise
    session._add(turn, draft.memory)
    return turn


def _ends_with(path: Path, line: str) -> bool:
    """Return whether a file's last line is ``line``, whole."""
    data = line.encode("utf-8") + b"\n"
    try:
        with path.open("rb") as file:
            file.seek(-len(data), os.SEEK_END)
            return file.read() == data
    except OSError:  # absent, or shorter than the line
        return False


def picture_metadata(performance: Performance, **more: Any) -> dict[str, Any]:
    """Return what a picture's PNG carries: everything needed to paint it again."""
    request = performance.request
    return {
        "prompt": request.prompt,
        "negative": request.negative,
        "seed": performance.seed,
        "size": list(request.size),
        "steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "characters": [
            {
                "id": character.id,
                "phrase": character.phrase,
                "box": None if character.box is None else [round(float(value), 4) for value in character.box],
                "reference": character.reference is not None,
            }
            for character in request.characters
        ],
        "model": performance.model,
        **more,
    }


def drawing_prompt(page: Page, language: Language) -> str:
    """Return the whole page as one sentence for the painter."""
    looks = [dict(character.attributes) for character in page.back_to_front()]
    if all("species" in look for look in looks):
        who = people(looks, language)
    else:
        who = (", " if language == "en" else "，").join(character.prompt for character in page.back_to_front())
    background = find_key(page.background, BACKGROUNDS)
    where = page.background if background is None else WHERE[background][0 if language == "en" else 1]
    style = find_key(page.style, STYLES) if page.style else None
    if language == "en":
        manner = "" if style is None else f", {term('style', style).en[0]} style"
        return f"{who} {where}{manner}".strip() or "an empty stage"
    manner = "" if style is None else f"，{term('style', style).zh[0]}风格"
    return f"{where}{'的' if where and who else ''}{who}{manner}" or "空舞台"


def _description(page: Page, language: Language) -> str:
    """Say what was recognised in a user's picture, honestly."""
    if not page.characters:
        if language == "en":
            return "I looked at the picture but recognised nothing of my world in it."
        return "我看了这张图，但没有认出我这个世界里的东西。"
    who = people([dict(character.attributes) for character in page.characters], language)
    background = find_key(page.background, BACKGROUNDS)
    if language == "en":
        where = "" if background is None else f" {WHERE[background][0]}"
        return f"I see {who}{where}. Tell me what to change."
    where = "" if background is None else WHERE[background][1]
    return f"我看到{where}{'有' if where else ''}{who}。告诉我怎么改。"


def _upload_name(turn: int) -> str:
    """Return the file name of a user's picture."""
    return f"upload-{turn:04d}.png"
