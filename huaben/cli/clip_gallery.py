"""A page of pictures that shows which mined pairs to doubt: likely false negatives, and likely mispaired captions."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .clip_words import tell
from .words import language

if TYPE_CHECKING:
    from ..clip.dataset import PairDataset
    from ..clip.hard_pairs import HardPairs

SIDE = 144  # of a picture on the page, in pixels
PLACES = 8  # of each list that are looked at: the best scores stand in front

STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p { max-width: 46rem; } ul { list-style: none; padding: 0; margin: 0; display: grid; gap: .8rem;
grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); }
li { border: 1px solid color-mix(in srgb, currentColor 20%, transparent); border-radius: .5rem; padding: .7rem; }
.two { display: flex; gap: .7rem; } figure { margin: 0; flex: 1 1 0; min-width: 0; overflow-wrap: anywhere; }
img { width: 100%; max-width: 9rem; border-radius: .3rem; display: block; background: #fff; }
figcaption, small { font-size: .82rem; } code { opacity: .7; font-size: .78rem; }
details { margin: 1.6rem 0; } table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: .15rem .8rem .15rem 0; text-align: left; font-weight: normal; }
td { font-variant-numeric: tabular-nums; }
""".strip()


@dataclass(frozen=True, slots=True)
class Doubt:
    """A mined pair that may be a false negative: rows of the list and their score."""

    row: int
    partner: int
    score: float
    mutual: bool


def likely_false_negatives(pairs: HardPairs, count: int) -> list[Doubt]:
    """Return the pairs of highest score, each once: where pictures and captions are nearly exchangeable."""
    places = min(PLACES, pairs.k)
    lists, scores = np.asarray(pairs.pairs[:, :places]), np.asarray(pairs.scores[:, :places])
    some = np.flatnonzero((lists >= 0).ravel())
    if not len(some) or count < 1:
        return []
    values = scores.ravel()[some]
    if len(some) > 2 * count:  # each pair may stand in both lists
        kept = np.argpartition(-values, 2 * count)[: 2 * count]
        some, values = some[kept], values[kept]
    found: dict[tuple[int, int], Doubt] = {}
    for at in np.lexsort((some, -values)):
        row, partner = int(some[at] // places), int(lists.ravel()[some[at]])
        mutual = row in np.asarray(pairs.pairs[partner])
        found.setdefault(
            (min(row, partner), max(row, partner)), Doubt(row, partner, round(float(values[at]), 4), mutual)
        )
    return list(found.values())[:count]


def likely_mispaired(pairs: HardPairs, count: int) -> NDArray[np.int64]:
    """Return the rows whose picture and caption agree with the fewest others, worst first, among the flagged ones."""
    flagged = np.flatnonzero(np.asarray(pairs.outlier))
    return flagged[np.argsort(pairs.agreement[flagged], kind="stable")][: max(0, count)]


def gallery(
    pairs: HardPairs, data: PairDataset | None, rows: NDArray[np.int64] | None, count: int, facts: Sequence[str]
) -> str:
    """Return the page.

    Args:
        pairs: the lists.
        data: their pictures and captions; without it the page shows keys alone.
        rows: (N,) the data's row of each pair, -1 where it has none.
        count: pairs shown of each kind.
        facts: lines of text to unfold below them, ``name: value``.
    """
    doubts = likely_false_negatives(pairs, count)
    odd = likely_mispaired(pairs, count)
    parts = [
        f'<!doctype html><html lang="{language()}"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(tell("clip_gallery_title"))}</title>'
        f"<style>{STYLE}</style></head><body><h1>{html.escape(tell('clip_gallery_title'))}</h1>",
        f"<p>{html.escape(tell('clip_gallery_about'))}</p>",
        "<ul>",
    ]
    for doubt in doubts:
        note = tell("clip_gallery_mutual" if doubt.mutual else "clip_gallery_one_way", score=f"{doubt.score:.3f}")
        both = "".join(_figure(pairs, data, rows, row) for row in (doubt.row, doubt.partner))
        parts.append(f'<li><div class="two">{both}</div><small>{html.escape(note)}</small></li>')
    parts.append("</ul>")
    if len(odd):
        parts.append(f"<h2>{html.escape(tell('clip_gallery_odd'))}</h2>")
        parts.append(f"<p>{html.escape(tell('clip_gallery_odd_about'))}</p><ul>")
        parts += [f"<li>{_figure(pairs, data, rows, int(row))}</li>" for row in odd]
        parts.append("</ul>")
    table = "<table>" + "".join(_fact(fact) for fact in facts) + "</table>"
    parts.append(f"<details><summary>{html.escape(tell('clip_gallery_facts'))}</summary>{table}</details>")
    return "".join([*parts, "</body></html>\n"])


def key_of(pairs: HardPairs, row: int) -> str:
    """Return a pair's key, or its number where the list has none."""
    return pairs.keys[row] if pairs.keys is not None else str(row)


def _fact(fact: str) -> str:
    name, _, value = fact.partition(": ")
    return f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"


def _figure(pairs: HardPairs, data: PairDataset | None, rows: NDArray[np.int64] | None, row: int) -> str:
    name = f"<code>{html.escape(key_of(pairs, row))}</code>"
    at = -1 if data is None or rows is None else int(rows[row])
    if data is None or at < 0:
        return f"<figure>{name}</figure>"
    said = "<br>".join(html.escape(caption.text) for caption in data.captions(at))
    return f'<figure><img alt="" src="{picture_uri(data.image(at))}"><figcaption>{said}<br>{name}</figcaption></figure>'


def picture_uri(image: NDArray[np.uint8]) -> str:
    """Return a small copy of a picture as a data URI."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((2 * SIDE, 2 * SIDE))
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
