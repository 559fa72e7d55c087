"""``huaben doctor``: what this machine and installation can do, and what to repair."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from ..optional import probe
from ..storyboard import font_file, system_font
from .main import FAILED, print_json
from .words import language, say

CORE = ("numpy", "PIL", "safetensors", "tokenizers", "aggdraw", "rich", "typer")
OPTIONAL = (
    "transformers", "diffusers", "accelerate", "triton", "optuna", "highspy", "scipy", "matplotlib",
    "sklearn", "pyarrow", "datasets", "faiss", "open_clip", "ray", "torchvision",
)  # fmt: skip
REPAIR = {
    "torchvision": "pip uninstall torchvision (huaben does not use it; one built for another torch also breaks "
    "transformers and diffusers)",
    "torch": "install torch again in a fresh environment",
}


def command(as_json: Annotated[bool, typer.Option("--json", help=say("json"))] = False) -> None:
    """Look around, print what was found, and exit with 1 if something needed is broken."""
    found = look()
    if as_json:
        print_json(found)
    else:
        typer.echo("\n".join(describe(found)))
    if found["problems"]:
        raise typer.Exit(FAILED)


def look() -> dict[str, Any]:
    """Return every finding, and the problems among them with their repair."""
    torch = look_at_torch()
    packages = {name: vars_of(name) for name in (*CORE, *OPTIONAL)}
    weights = look_at_weights(Path(str(resources.files("huaben"))) / "weights")
    problems: list[dict[str, str]] = []
    for name, state in {"torch": torch, **packages}.items():
        if state["problem"] or (state["version"] is None and name not in OPTIONAL):
            problems.append(
                {
                    "what": f"{name}: {state['problem'] or 'not installed'}",
                    "repair": REPAIR.get(name, f"pip install --force-reinstall {'pillow' if name == 'PIL' else name}"),
                }
            )
    problems += [
        {"what": f"weights {name}: {problem}", "repair": "install huaben again: its files were changed"}
        for name, state in weights.items()
        for problem in state["problems"]
    ]
    if not weights:
        problems.append({"what": "no embedded models", "repair": "install huaben again, or train them: huaben train"})
    return {
        "huaben": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "executable": sys.executable,
        "torch": torch,
        "memory_gb": memory_gb(),
        "disk_free_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
        "terminal": {
            "interactive": sys.stdout.isatty(),
            "encoding": sys.stdout.encoding,
            "columns": shutil.get_terminal_size().columns,
            "language": language(),
        },
        "chinese_font": system_font() or str(font_file()),
        "packages": packages,
        "weights": weights,
        "problems": problems,
    }


def vars_of(name: str) -> dict[str, str | None]:
    found = probe(name)
    return {"version": found.version, "problem": found.problem}


def look_at_torch() -> dict[str, Any]:
    """Return torch's version, build and devices."""
    found: dict[str, Any] = dict(vars_of("torch"))
    if found["version"] is None:
        return found
    import torch

    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            gpus.append({"name": facts.name, "memory_gb": round(facts.total_memory / 1e9, 1)})
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    return {**found, "build": build, "threads": torch.get_num_threads(), "cores": os.cpu_count(), "gpus": gpus}


def look_at_weights(root: Path) -> dict[str, dict[str, Any]]:
    """Return each embedded model's size and scores, and the files that are absent or differ from their card."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(root.glob("*/card.json")) if root.is_dir() else []:
        problems: list[str] = []
        try:
            card = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            found[path.parent.name] = {"files": 0, "megabytes": 0.0, "problems": [f"card.json: {error}"]}
            continue
        size = 0
        for name, expected in card.get("files", {}).items():
            file = path.parent / name
            if not file.is_file():
                problems.append(f"{name} is absent")
                continue
            data = file.read_bytes()
            size += len(data)
            if hashlib.sha256(data).hexdigest() != expected:
                problems.append(f"{name} is not the file its card describes")
        found[path.parent.name] = {
            "files": len(card.get("files", {})),
            "megabytes": round(size / 1e6, 2),
            "scores": card.get("scores", {}),
            "problems": problems,
        }
    return found


def memory_gb() -> dict[str, float]:
    """Return total and available memory, where the system tells."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        facts = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        return {"total": round(facts["MemTotal"] / 1e6, 1), "available": round(facts["MemAvailable"] / 1e6, 1)}
    except (OSError, ValueError, KeyError, IndexError):
        if not hasattr(os, "sysconf"):
            return {}
        return {"total": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)}


def describe(found: dict[str, Any]) -> list[str]:
    """Return the report as lines."""
    torch = found["torch"]
    rows = [
        ("huaben", found["huaben"]),
        ("Python", f"{found['python']}  {found['executable']}"),
        (say("platform"), found["platform"]),
        ("torch", f"{torch['version']}  {torch.get('build', '')}" if torch["version"] else state_text(torch)),
        (say("threads"), f"{torch.get('threads', '-')} / {os.cpu_count()}"),
        ("GPU", ", ".join(f"{gpu['name']} ({gpu['memory_gb']} GB)" for gpu in torch.get("gpus", [])) or say("none")),
        (say("memory"), "  ".join(f"{key} {value} GB" for key, value in found["memory_gb"].items())),
        (say("disk"), f"{found['disk_free_gb']} GB"),
        (say("terminal"), f"{found['terminal']['encoding']}, {found['terminal']['columns']}"),
        (say("fonts"), found["chinese_font"]),
    ]
    lines = [f"{name}: {value}" for name, value in rows]
    lines += ["", f"{say('weights')}:"]
    lines += [
        f"  {name}: {state['megabytes']} MB" + "".join(f"  ! {problem}" for problem in state["problems"])
        for name, state in found["weights"].items()
    ] or [f"  {say('none')}"]
    lines += ["", f"{say('packages')}:"]
    lines += [f"  {name}: {state_text(found['packages'][name])}" for name in OPTIONAL]
    lines.append("")
    if found["problems"]:
        lines.append(f"{say('problems')}:")
        for problem in found["problems"]:
            lines += [f"  {problem['what']}", f"    {say('hint')}: {problem['repair']}"]
    else:
        lines.append(say("well"))
    return lines


def state_text(state: dict[str, Any]) -> str:
    if state["version"]:
        return str(state["version"])
    return f"{say('broken')} ({state['problem']})" if state["problem"] else say("missing")
