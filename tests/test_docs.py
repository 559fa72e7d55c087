"""The documents' Python examples run, file by file and from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [path for path in (*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("README*.md")))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(path: Path) -> list[tuple[int, str]]:
    """Return the Python examples of a file with their first lines' numbers."""
    text = path.read_text(encoding="utf-8")
    return [(text[: match.start(1)].count("\n") + 1, match[1]) for match in BLOCK.finditer(text)]


@pytest.mark.parametrize("path", [path for path in FILES if blocks(path)], ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "example"}
    for line, code in blocks(path):
        exec(compile("\n" * (line - 1) + code, str(path), "exec"), names)  # noqa: S102 - our own documents


def test_examples_that_need_a_server_compile_and_name_what_exists() -> None:
    """Blocks marked ``py`` talk to a server, so only their syntax and their imports from huaben are checked."""
    found = 0
    for path in FILES:
        for code in re.findall(r"^```py\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            compile(code, str(path), "exec")
            exec("\n".join(re.findall(r"^from huaben.*$", code, re.MULTILINE)), {})  # noqa: S102 - our own documents
            found += 1
    assert found


def test_relative_links_lead_somewhere() -> None:
    for path in FILES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.relative_to(ROOT)}: {target}"


def test_the_page_of_words_is_the_vocabulary() -> None:
    names: dict[str, object] = {"__name__": "words", "__file__": str(ROOT / "docs" / "words.py")}
    exec((ROOT / "docs" / "words.py").read_text(encoding="utf-8"), names)  # noqa: S102 - our own script
    page = names["page"]
    assert callable(page)
    assert (ROOT / "docs" / "guides" / "world-words.md").read_text(encoding="utf-8") == page()
