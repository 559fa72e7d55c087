"""Picture files: PNG with its story inside, and strangers' pictures read with limits.

A written picture carries three labels: a text chunk ``huaben`` with versioned JSON (everything needed to paint it
again), ``parameters`` in the infotext other programs read, and an XMP mark that it was made by a program.
"""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageOps, PngImagePlugin, UnidentifiedImageError

from .errors import DataError
from .files import write_bytes

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_FILE_BYTES = 20 * 2**20
MAX_PIXELS = 40_000_000
METADATA_VERSION = 1
METADATA_CHUNK = "huaben"

_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:TC260="http://www.tc260.org.cn/ns/AIGC/1.0/"><TC260:AIGC>{label}</TC260:AIGC></rdf:Description></rdf:RDF>'
    '</x:xmpmeta><?xpacket end="w"?>'
)


def png_bytes(image: npt.NDArray[np.uint8], metadata: dict[str, Any] | None = None) -> bytes:
    """Return a picture as PNG.

    Args:
        image: uint8 (height, width, 3).
        metadata: JSON values for the ``huaben`` chunk; ``prompt``, ``negative``, ``seed``, ``steps``,
            ``guidance_scale``, ``size`` and ``model`` also go into the infotext. None writes no label at all.
    """
    chunks = PngImagePlugin.PngInfo()
    if metadata is not None:
        text = json.dumps({"version": METADATA_VERSION, **metadata}, ensure_ascii=False, sort_keys=True)
        chunks.add_itxt(METADATA_CHUNK, text)
        chunks.add_itxt("parameters", infotext(metadata))
        label = {"Label": "1", "ContentProducer": "huaben", "ProduceID": str(metadata.get("seed", ""))}
        chunks.add_itxt("XML:com.adobe.xmp", _XMP.format(label=escape(json.dumps(label))))
    buffer = io.BytesIO()
    PillowImage.fromarray(image).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def write_picture(path: Path, image: npt.NDArray[np.uint8], metadata: dict[str, Any] | None = None) -> None:
    """Write a PNG whole or not at all.

    Raises:
        StoreError: if the disk is full or the folder cannot be written.
    """
    write_bytes(path, png_bytes(image, metadata))


def infotext(metadata: dict[str, Any]) -> str:
    """Return the prompt and settings as the text that other programs show and read."""
    names = {"steps": "Steps", "guidance_scale": "CFG scale", "seed": "Seed", "model": "Model hash"}
    settings = [f"{label}: {metadata[name]}" for name, label in names.items() if metadata.get(name) not in (None, "")]
    if metadata.get("size"):
        height, width = metadata["size"]
        settings.append(f"Size: {width}x{height}")
    lines = [str(metadata.get("prompt", ""))]
    if metadata.get("negative"):
        lines.append(f"Negative prompt: {metadata['negative']}")
    return "\n".join([*lines, ", ".join(settings)])


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the ``huaben`` chunk of a PNG; empty if it has none.

    Raises:
        DataError: if the file is no picture, or its chunk is not what huaben writes.
    """
    try:
        with PillowImage.open(path, formats=["PNG"]) as picture:
            picture.load()
            text = getattr(picture, "text", {}).get(METADATA_CHUNK)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is not a readable PNG: {error}", hint="give a picture that huaben wrote") from error
    if text is None:
        return {}
    try:
        values = json.loads(text)
    except ValueError as error:
        raise DataError(f"the {METADATA_CHUNK!r} chunk of {path} is not JSON") from error
    if not isinstance(values, dict) or values.get("version") != METADATA_VERSION:
        raise DataError(f"the {METADATA_CHUNK!r} chunk of {path} is of another version")
    return values


def read_picture(path: str | Path, *, max_side: int | None = None) -> npt.NDArray[np.uint8]:
    """Read a picture from anywhere: PNG, JPEG or WebP, turned upright, transparency on white.

    Args:
        path: a local file.
        max_side: shrink so that neither side is longer.

    Returns:
        uint8 (height, width, 3).

    Raises:
        DataError: if there is no such file, it is larger than 20 MB or 40 megapixels, or not one of the formats.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise DataError(f"{path} is not a file", hint="give the path of a PNG, JPEG or WebP picture")
        if size > MAX_FILE_BYTES:
            raise DataError(f"{path} has {size / 2**20:.1f} MB, at most 20 MB are read", hint="save a smaller copy")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    return decode_picture(data, str(path), max_side=max_side)


def decode_picture(data: bytes, name: str = "picture", *, max_side: int | None = None) -> npt.NDArray[np.uint8]:
    """Decode picture bytes; limits, result and errors as for :func:`read_picture`."""
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"{name} has {len(data) / 2**20:.1f} MB, at most 20 MB are read", hint="save a smaller copy")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PillowImage.DecompressionBombWarning)
            with PillowImage.open(io.BytesIO(data), formats=FORMATS) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise DataError(
                        f"{name} has {width}x{height} pixels, at most {MAX_PIXELS // 10**6} million are read",
                        hint="save a smaller copy",
                    )
                if max_side is not None:
                    picture.draft("RGB", (max_side, max_side))
                upright = ImageOps.exif_transpose(picture)
                rgba = eight_bits(upright).convert("RGBA")
    except PillowImage.DecompressionBombError as error:
        raise DataError(
            f"{name} has more than the {MAX_PIXELS // 10**6} million pixels that are read", hint="save a smaller copy"
        ) from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is not a PNG, JPEG or WebP picture", hint="convert it to PNG first") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"{name} is damaged: {error}", hint="save it again, or use another picture") from error
    if max_side is not None and max(rgba.size) > max_side:
        rgba.thumbnail((max_side, max_side), PillowImage.Resampling.LANCZOS)
    white = PillowImage.new("RGBA", rgba.size, (255, 255, 255, 255))
    return np.asarray(PillowImage.alpha_composite(white, rgba).convert("RGB")).copy()


def eight_bits(picture: PillowImage.Image) -> PillowImage.Image:
    """Return grey of 16 bits as its upper 8, where Pillow's own conversion clips at 255; other modes as they are."""
    if picture.mode != "I" and not picture.mode.startswith("I;16"):
        return picture
    values = np.clip(np.asarray(picture).astype(np.int64) >> 8, 0, 255)
    return PillowImage.fromarray(values.astype(np.uint8))
