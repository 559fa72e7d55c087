"""What holds for the project as a whole: imports, sizes, documents, words."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import huaben
from huaben.bench import bench_names
from huaben.cli.main import VERBS
from huaben.recipes import recipe_names

ROOT = Path(__file__).resolve().parents[1]
MEGABYTE = 1024 * 1024
HEAVY = ("torch", "transformers", "diffusers", "PIL", "numpy")


def tracked() -> list[Path]:
    """Return the files under version control, or every file of the project's folders in an unpacked archive."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
        names = [name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        folders = ("huaben", "tests", "docs", "examples", "experiments")
        names = [str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*")]
    return [ROOT / name for name in names if (ROOT / name).is_file() and "__pycache__" not in name]


def modules_after(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter holds after ``statement``."""
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules), file=sys.__stderr__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stderr.split())


def test_help_imports_nothing_heavy() -> None:
    loaded = modules_after("from huaben.cli.main import main\nassert main(['--help']) == 0")
    assert "huaben.cli.main" in loaded
    assert not loaded & set(HEAVY)
    assert not any(name.startswith("huaben.cli.") and name.split(".")[2] in VERBS for name in loaded)


@pytest.mark.parametrize(
    "name",
    [
        "huaben",
        "huaben.promptbook",
        "huaben.recipes",
        "huaben.optional",
        "huaben.world.vocabulary",
        "huaben.world.scene",
        "huaben.world.render",
        "huaben.world.sample",
        "huaben.world.captions",
    ],
)
def test_light_modules_import_no_torch(name: str) -> None:
    loaded = modules_after(f"import {name}")
    assert name in loaded
    assert "torch" not in loaded


def test_every_recipe_has_its_module() -> None:
    for name in recipe_names():
        assert importlib.util.find_spec(f"huaben.recipes.{name}") is not None, name


def test_the_version_is_a_release_of_the_changelog() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", huaben.__version__)
    assert f"[{huaben.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_documents_mention_every_verb() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md"))
    for verb in VERBS:
        assert f"huaben {verb}" in text, verb


def test_the_page_of_measurements_names_them_all() -> None:
    text = (ROOT / "docs" / "rooms" / "bench.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(bench_names())


def test_every_room_has_a_page_and_every_page_is_in_the_menu() -> None:
    rooms = {path.parent.name for path in (ROOT / "huaben").glob("*/__init__.py")} - {"cli"}
    pages = {path.stem for path in (ROOT / "docs" / "rooms").glob("*.md")}
    assert rooms <= pages
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for path in (ROOT / "docs").rglob("*.md"):
        assert path.relative_to(ROOT / "docs").as_posix() in menu, path


def test_paths_named_in_the_paper_table_exist() -> None:
    text = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:huaben|tests|experiments)/[\w./-]+)`", text)
    assert len(named) > 20
    for name in named:
        assert (ROOT / name).exists(), name


def test_weights_are_small_enough() -> None:
    sizes = {path: path.stat().st_size for path in (ROOT / "huaben" / "weights").rglob("*") if path.is_file()}
    assert all(size < 16 * MEGABYTE for size in sizes.values()), sizes
    assert sum(sizes.values()) < 64 * MEGABYTE


def test_no_file_is_large_and_none_is_a_pickle() -> None:
    for path in tracked():
        assert path.stat().st_size < 16 * MEGABYTE, path
        assert path.suffix not in {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt"}, path


# In pieces, so that this file does not hold them.
UNWANTED = re.compile(
    "|".join(
        (
            r"\b" + "TO" + "DO\\b",
            r"\b" + "FIX" + "ME\\b",
            r"\b" + "XX" + "X\\b",
            "lorem " + "ipsum",
            "/wo" + "rk/",
            "/ho" + "me/",
            "/ro" + "ot/",
            "/opt/" + "pypi",
        )
    )
)


def test_files_hold_no_unfinished_or_private_words() -> None:
    for path in tracked():
        if path.suffix in {".py", ".md", ".toml", ".yml", ".yaml", ".txt", ".json", ".jsonl", ".lock", ""}:
            found = UNWANTED.search(path.read_text(encoding="utf-8", errors="ignore"))
            assert found is None, f"{path}: {found[0] if found else ''}"


def test_constraints_are_the_lock_in_another_form() -> None:
    lock = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
    locked = {(package["name"], package["version"]) for package in lock["package"] if package["name"] != "huaben"}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {tuple(line.split(" ;")[0].split("==")) for line in lines if line and not line.startswith("#")}
    assert pinned == locked
    hosts = set(re.findall(r"https?://([^/\"]+)", (ROOT / "uv.lock").read_text(encoding="utf-8")))
    assert hosts <= {"pypi.org", "files.pythonhosted.org"}


def test_no_extra_brings_torchvision() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *(item for items in project["optional-dependencies"].values() for item in items)]
    assert not any("torchvision" in item or "open_clip" in item or "timm" in item for item in named)
