"""Stories out of the studio and into it: session folders byte for byte, storyboards, comic books, documents."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image as PillowImage

from ..errors import DataError, StoreError
from ..pictures import png_bytes
from ..session import read_turns
from ..storyboard import contact_sheet, font_file, page_html
from .models import Person, Story, Turn
from .service import Studio
from .store import Store
from .work import checks_of, work_place, work_prefix

KINDS: dict[str, tuple[str, str]] = {
    "html": ("text/html; charset=utf-8", "html"),
    "pdf": ("application/pdf", "pdf"),
    "cbz": ("application/vnd.comicbook+zip", "cbz"),
    "png": ("image/png", "png"),
    "json": ("application/json", "json"),
    "zip": ("application/zip", "zip"),
}
MAX_PARTS, MAX_UNPACKED = 66, 64 * 2**20
_FACTS = {"name": 80, "prompt": 400, "category": 80}
FIXED_TIME = (2020, 1, 1, 0, 0, 0)
"""In archives, so that the same story gives the same bytes."""


def write_folder(store: Store, story: Story, turn_id: str | None, folder: Path) -> int:
    """Write the turns up to ``turn_id`` as a session folder, as a session itself would have; return how many.

    Raises:
        StoreError: if the folder has something in it.
    """
    if folder.exists() and any(folder.iterdir()):
        raise StoreError(f"{folder} is not empty", hint="use another folder")
    path = store.path(turn_id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "session.json").write_text(story.session, encoding="utf-8")
    if path:
        (folder / "state").mkdir()
        (folder / "turns.jsonl").write_text("".join(f"{turn.line}\n" for turn in path), encoding="utf-8")
    for turn in path:
        state = store.state(turn.id)
        (folder / "state" / f"{turn.number:04d}.json").write_text(state, encoding="utf-8")
    for name, sha in store.files(turn.id for turn in path).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(store.pictures.get(sha))
    return len(path)


def read_folder(store: Store, account: str | None, folder: Path) -> Story:
    """Take a session folder in as a story; the folder is left as it is.

    Raises:
        DataError: if it is not one.
        StoreError: if it is damaged.
    """
    try:
        session = (folder / "session.json").read_text(encoding="utf-8")
        json.loads(session)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} has no session", hint="give a folder that huaben chat --out wrote") from error
    turns = read_turns(folder)
    lines = (folder / "turns.jsonl").read_text(encoding="utf-8").splitlines() if turns else []
    story = store.add_story(
        account, session, title=next((t["message"][:80] for t in turns if t["message"]), folder.name)
    )
    parent: Turn | None = None
    taken: set[str] = set()
    for line, values in zip(lines, turns, strict=False):
        number = int(values["turn"])
        state_path = folder / "state" / f"{number:04d}.json"
        try:
            state = state_path.read_text(encoding="utf-8")
        except OSError as error:
            raise StoreError(f"{state_path} cannot be read", hint="restore the folder from a copy") from error
        upload = f"upload-{number:04d}.png"
        names = [values["image"], upload, *(f"cast/{entry['file']}" for entry in json.loads(state).get("cast", []))]
        files = {n: (folder / n).read_bytes() for n in names if n and n not in taken and (folder / n).is_file()}
        taken |= set(files)
        parent = store.commit_turn(
            story.id,
            None if parent is None else parent.id,
            line=line,
            state=state,
            files=files,
            message=values["message"],
            image=values["image"],
            upload=upload if upload in files else None,
            more={"checks": checks_of(state, values.get("seed"))},
        )
    return store.story(account, story.id)


def export_story(
    studio: Studio, account: str | None, id: str, kind: str, *, turn: str | None = None
) -> tuple[bytes, str]:
    """Return a story as a file and the name it should have.

    Args:
        studio, account, id: of the story.
        kind: of :data:`KINDS`.
        turn: where it ends; where it stands by default.

    Raises:
        DataError: if it has no turns.
    """
    store = studio.store
    story = store.story(account, id)
    if turn is not None and store.turn(account, turn).story_id != id:
        raise DataError("the turn is of another story", hint="use an id from this story's tree")
    turn = turn or story.head_id
    if turn is None:
        raise DataError("the story has no turns yet", hint="say something first")
    with tempfile.TemporaryDirectory(prefix=work_prefix(), dir=work_place()) as place:
        folder = Path(place) / "story"
        write_folder(store, story, turn, folder)
        turns = read_turns(folder)
        title = story.title or "huaben"
        data = {
            "html": lambda: page_html(folder, turns).encode("utf-8"),
            "png": lambda: png_bytes(contact_sheet(folder, turns)),
            "json": lambda: _document(story, turns),
            "zip": lambda: _zip(
                {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
            ),
            "cbz": lambda: _comic(folder, turns, title),
            "pdf": lambda: _pdf(folder, turns, title),
        }[kind]()
    return data, f"{plain_name(title)}.{KINDS[kind][1]}"


def plain_name(title: str) -> str:
    """Return a title as a file name without its ending."""
    return "".join(" " if letter in '\\/:*?"<>|\n\r\t' else letter for letter in title)[:60].strip() or "huaben"


def export_character(store: Store, account: str | None, id: str) -> tuple[bytes, str]:
    """Return a character of the library as a zip: ``character.json``, its pictures, ``embeddings.safetensors``."""
    import base64

    import numpy as np
    from safetensors.numpy import save

    person = store.person(account, id)
    references = [dict(entry) for entry in person.references]
    files, tensors = {}, {}
    for number, entry in enumerate(references):
        files[entry["file"]] = store.pictures.get(entry.pop("sha256"))
        tensors[f"reference.{number}"] = np.frombuffer(base64.b64decode(entry.pop("embedding")), "<f4").copy()
    values = {
        "format": "huaben-character",
        "version": 1,
        "name": person.name,
        "prompt": person.prompt,
        "category": person.category,
        "attributes": person.attributes,
        "references": references,
    }
    files["character.json"] = (json.dumps(values, ensure_ascii=False, indent=2) + "\n").encode("utf-8")
    files["embeddings.safetensors"] = save(tensors)
    return _zip(files), f"{plain_name(person.name)}.zip"


def import_character(store: Store, account: str | None, data: bytes) -> Person:
    """Take a character in from its zip; pictures are decoded and encoded anew.

    Raises:
        DataError: if it is not one, or has more in it than it may.
    """
    import base64
    import hashlib

    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_PARTS or sum(entry.file_size for entry in entries) > MAX_UNPACKED:
                raise DataError("the archive has too much in it", hint="at most 66 files and 64 MB")
            files = {entry.filename: archive.read(entry) for entry in entries}
        values = json.loads(files["character.json"])
        if values["format"] != "huaben-character" or values["version"] != 1:
            raise DataError("the archive is of another format", hint="export it again")
        tensors = load(files["embeddings.safetensors"])
        references, pictures = [], {}
        for number, entry in enumerate(values["references"]):
            with PillowImage.open(io.BytesIO(files[entry["file"]]), formats=["PNG"]) as picture:
                if picture.width * picture.height > 4_000_000:
                    raise DataError("a reference picture is too large", hint="at most 4 megapixels")
                buffer = io.BytesIO()
                PillowImage.fromarray(np.asarray(picture.convert("RGBA"))).save(buffer, "PNG")
            digest = hashlib.sha256(buffer.getvalue()).hexdigest()
            name = f"{digest[:16]}.png"
            pictures[name] = buffer.getvalue()
            embedding = base64.b64encode(tensors[f"reference.{number}"].astype("<f4").tobytes()).decode("ascii")
            references.append(
                {
                    "id": "1",
                    "version": number,
                    "turn": 0,
                    "prompt": str(entry["prompt"])[:400],
                    "look": [str(part)[:80] for part in entry["look"]][:8],
                    "facing": "left" if entry["facing"] == "left" else "right",
                    "box": [float(value) for value in entry["box"]][:4],
                    "file": name,
                    "sha256": digest,
                    "embedding": embedding,
                }
            )
        facts = {name: str(values[name]).replace("\x00", "")[:limit] for name, limit in _FACTS.items()}
        attributes = {str(key)[:80]: str(value)[:80] for key, value in dict(values["attributes"]).items()}
    except (KeyError, TypeError, ValueError, OSError, zipfile.BadZipFile, SafetensorError, RuntimeError) as error:
        raise DataError(f"this is not a character of huaben: {error}", hint="give a zip that was exported") from error
    if not facts["name"].strip() or not facts["prompt"].strip():
        raise DataError("the character has no name or no description", hint="export it again")
    return store.add_person(account, pictures, attributes=attributes, references=references, **facts)


def _document(story: Story, turns: list[dict[str, Any]]) -> bytes:
    """Return the story as one JSON document."""
    values = {"format": "huaben-story", "version": 1, "title": story.title, "session": json.loads(story.session)}
    return (json.dumps({**values, "turns": turns}, ensure_ascii=False, indent=2) + "\n").encode("utf-8")


def _zip(files: dict[str, bytes]) -> bytes:
    """Return an archive of files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, FIXED_TIME), data)
    return buffer.getvalue()


def _drawn(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the turns with a new picture."""
    return [turn for turn in turns if turn.get("image") and turn.get("action") == "draw"]


def _comic(folder: Path, turns: list[dict[str, Any]], title: str) -> bytes:
    """Return a comic book archive: the pictures in order, and what readers show of it."""
    drawn = _drawn(turns)
    files = {f"{number:04d}.png": (folder / turn["image"]).read_bytes() for number, turn in enumerate(drawn, 1)}
    summary = "\n".join(f"{number}. {turn.get('message', '')}" for number, turn in enumerate(drawn, 1))
    files["ComicInfo.xml"] = (
        '<?xml version="1.0" encoding="utf-8"?>\n<ComicInfo xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
        f"<Title>{escape(title)}</Title><Summary>{escape(summary)}</Summary><PageCount>{len(drawn)}</PageCount>"
        "<Writer>huaben</Writer></ComicInfo>\n"
    ).encode()
    return _zip(files)


def _pdf(folder: Path, turns: list[dict[str, Any]], title: str) -> bytes:
    """Return an A4 document: message, picture and reply of each turn, two to a page, Chinese embedded."""
    from reportlab.lib.enums import TA_CENTER
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.lib.units import mm
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont
    from reportlab.platypus import Image, KeepTogether, Paragraph, SimpleDocTemplate, Spacer

    if "huaben" not in pdfmetrics.getRegisteredFontNames():
        pdfmetrics.registerFont(TTFont("huaben", str(font_file())))
    text = ParagraphStyle("text", fontName="huaben", fontSize=11, leading=16, wordWrap="CJK")
    head = ParagraphStyle("head", parent=text, fontSize=20, leading=28, alignment=TA_CENTER, spaceAfter=8 * mm)
    said = ParagraphStyle("said", parent=text, textColor="#a93727", spaceAfter=2 * mm)
    parts: list[Any] = [Paragraph(escape(title), head)]
    for turn in turns:
        block: list[Any] = [Paragraph(escape(str(turn.get("message") or "")), said)]
        if turn.get("image") and (folder / turn["image"]).is_file():
            picture = Image(str(folder / turn["image"]))
            picture._restrictSize(95 * mm, 95 * mm)
            block.append(picture)
        block += [Spacer(1, 2 * mm), Paragraph(escape(str(turn.get("reply") or "")), text), Spacer(1, 7 * mm)]
        parts.append(KeepTogether(block))
    buffer = io.BytesIO()
    SimpleDocTemplate(buffer, pagesize=A4, title=title, author="huaben", margin=18 * mm, invariant=1).build(parts)
    return buffer.getvalue()
