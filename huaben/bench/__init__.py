"""Measurements: one module a claim, each with ``run(...) -> dict``; named here, imported when asked for.

Every name and its value lands in ``results.json`` with config, versions, hardware and seeds beside it.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from types import ModuleType

from ..errors import UsageError

BENCHES: dict[str, str] = {
    "conversations": "scripted four-turn conversations: the right page after every turn",
    "detector": "how well pictures are read back: the instrument behind every other score",
    "painter": "species, colour and place of every character asked for: fresh, composed and reworded prompts",
    "labels": "does the detector agree with people about which painted characters can be recognised?",
    "pages": "two dozen fixed pages as a user sees them: the sheet, and what the detector reads on it",
    "story": "the same individual over a four-turn story, against the same seeds without references",
    "world_speed": "scenes of the embedded world a second on one core",
    "draw_speed": "seconds and memory of one picture, warm and from a cold start",
    "dit_speed": "sampling with our Hunyuan-DiT beside diffusers' on the same weights",
    "recall": "associative recall with one attention layer: DAPE V2 against the rest",
    "extrapolation": "perplexity of the same bytes with 128 to 8192 tokens of context, every position scheme",
    "che": "length generalisation on Chomsky-hierarchy tasks, scheme by scheme",
    "attention_speed": "adapted attention by row blocks beside the formulas: time, memory, decoding",
    "dape_kernel": "the fused attention kernel beside the formulas, row blocks, SDPA and FlexAttention, on a GPU",
    "transfer": "architecture search on TransNAS-Bench-101: every task from the others, method by method",
    "configurations": "small painters and CLIPs of equal compute, trained for real, and the search on their tables",
    "mining": "hard pairs by every method: pairs a second, recall against exact, peak memory",
    "hard_pairs_emoji": "HELIP on real bilingual emoji, every arm beside plain continued training at equal samples",
    "hard_pairs_world": "HELIP among near-identical scenes: what hard batches and the margin bring",
    "improved_clip": "the embedded CLIP before and after HELIP: retrieval, near-identical scenes, its text states",
    "adapter_view": "what the adapters of trained models do, head by head",
    "ordering": "maximal acyclic subgraphs: kept weight, true order and seconds, solver by solver",
}


def bench_names() -> list[str]:
    """Return the names of this installation, sorted."""
    return sorted(name for name in BENCHES if importlib.util.find_spec(f"{__name__}.{name}") is not None)


def load_bench(name: str) -> ModuleType:
    """Import a measurement's module.

    Raises:
        UsageError: for an unknown name, with the nearest known one.
    """
    names = bench_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(names)}"
        raise UsageError(f"there is no measurement {name!r}", hint=hint)
    return importlib.import_module(f"{__name__}.{name}")
