"""Writes guides/world-words.md from the vocabulary: ``python docs/words.py``."""

from __future__ import annotations

from pathlib import Path

from huaben.world.vocabulary import ATTRIBUTES

PAGE = Path(__file__).parent / "guides" / "world-words.md"


def page() -> str:
    """Return the page as text."""
    lines = [
        "# Words of the embedded world",
        "",
        "What the embedded models can be asked to draw. The first name of each language is the one huaben uses itself;",
        "the others are understood. This page is written by `docs/words.py`.",
    ]
    for attribute, terms in ATTRIBUTES.items():
        lines += ["", f"## {attribute}", "", "| English | 中文 |", "|---|---|"]
        lines += [f"| {', '.join(term.en)} | {'、'.join(term.zh)} |" for term in terms]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
