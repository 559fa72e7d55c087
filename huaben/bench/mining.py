"""Hard-pair mining at scale: pairs a second, recall against exhaustive search, and peak memory.

**Data.** Pairs are drawn independently, so any range of rows is a random sample of them. A latent vector of 48 numbers
is one of 16,384 concepts (popularity falls as rank^-0.8; concepts gather around 256 topics) plus heavy-tailed noise of
its own (Student's t, 5 degrees of freedom). Image and caption see it through two fixed random maps whose spectra fall
as rank^-0.5 and rank^-1, so that the modalities are anisotropic in different ways, then a shift common to the modality
(the cone that trained encoders show) and white noise are added; rows are made unit and kept as float16. ``strong``
coupling: both modalities see one latent; ``weak``: they share half of its numbers; ``none``: nothing, as if captions
were permuted. It imitates what is known of trained embeddings; it is not one.

**Figures.** Every method runs in a process of its own, whose highest resident size is its memory (mapped pages of the
features count). ``ann`` mines all pairs. The others, whose time is the same for every query, are timed on ``queries``
queries against all pairs and extrapolated: ``extrapolated`` says so, and ``setup_s`` (reading, checking, training,
building) is counted once. Recall is over the same queries, against exhaustive search among all pairs.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..clip.mining import Features, search_block, subset_of_round
from ..clip.mining_ann import best_of, exact_scores, mine_ann
from ..clip.mining_core import FloatArray, IntArray, Scoring
from ..clip.mining_lists import Features as Rows
from ..clip.mining_lists import release
from ..errors import ConfigError
from ..optional import is_available, require
from ..rng import torch_stream
from .apart import resident_mb, run_apart

METHODS = ("exact", "fast", "ann")
PEERS = ("faiss_flat", "faiss_ivf", "faiss_hnsw")
COUPLINGS = ("strong", "weak", "none")
Coupling = Literal["strong", "weak", "none"]

LATENT, TOPICS, CONCEPTS = 48, 256, 16_384
WITHIN, NOISE, FREEDOM = 0.7, 0.35, 5
CHUNK = 65_536
CHILD_LIMIT_S = 6 * 3600


def run(
    seed: int = 0,
    *,
    sizes: Sequence[int] = (100_000, 1_000_000),
    dims: int = 256,
    k: int = 50,
    methods: Sequence[str] = METHODS,
    peers: Sequence[str] = PEERS,
    couplings: Sequence[str] = ("strong",),
    queries: int = 512,
    fast_candidates: int = 10_000,
    memory_mb: float = 4096,
    peer_limit: int = 200_000,
    threads: int = 2,
    ann: Mapping[str, Any] | None = None,
    folder: str | None = None,
) -> dict[str, Any]:
    """Measure mining.

    Args:
        seed: of data and methods.
        sizes: numbers of pairs.
        dims: width of either modality.
        k: hard pairs of each.
        methods: of "exact", "fast" (FastHPM), "ann".
        peers: of "faiss_flat", "faiss_ivf", "faiss_hnsw": joint vectors, 4 k candidates scored exactly; left out, and
            said so, where faiss is not installed or the size is above ``peer_limit``.
        couplings: of "strong", "weak", "none".
        queries: queries that recall is measured on, and that all but ``ann`` are timed on.
        fast_candidates: subset that FastHPM scores.
        memory_mb: the setting that bounds ``exact`` and ``ann``.
        peer_limit: largest size for the peers, which hold everything in memory as float32.
        threads: of every method.
        ann: more settings of :func:`~huaben.clip.mining_ann.mine_ann`.
        folder: where features are written (4 dims bytes a pair), and kept; by default a temporary one.

    Returns:
        ``cases``: per size and coupling the methods' ``seconds`` and ``cpu_s`` for all pairs, ``pairs_per_s``,
        ``recall``, ``peak_mb`` of the process and ``grown_mb`` above what it was before, ``speedup`` and
        ``cpu_speedup`` over exact; ``settings``.

    Raises:
        ConfigError: for settings that cannot be measured.
    """
    unknown = [name for name in (*methods, *peers) if name not in (*METHODS, *PEERS)]
    unknown += [name for name in couplings if name not in COUPLINGS]
    if unknown or "exact" not in methods:
        raise ConfigError(
            f"methods {', '.join(methods)}; unknown: {', '.join(unknown) or 'none'}",
            hint=f"'exact' is needed for recall; there are {', '.join((*METHODS, *PEERS, *COUPLINGS))}",
        )
    if not sizes or min(sizes) <= max(k, queries) or min(dims, queries, threads, k) < 1:
        raise ConfigError(f"sizes={list(sizes)}, k={k}, queries={queries}", hint="sizes above k and queries")
    task = {
        "k": k,
        "seed": seed,
        "queries": queries,
        "threads": threads,
        "memory_mb": memory_mb,
        "fast_candidates": fast_candidates,
        "ann": dict(ann or {}),
    }
    cases = []
    with tempfile.TemporaryDirectory(prefix="huaben-mining-") as temporary:
        for size in sizes:
            for coupling in couplings:
                place = Path(folder or temporary) / f"{coupling}-{size}-{dims}-{seed}"
                started = time.perf_counter()
                write_pairs(place, size, dims, coupling, seed)
                case: dict[str, Any] = {"pairs": size, "dims": dims, "coupling": coupling}
                case["data_s"] = round(time.perf_counter() - started, 1)
                case["methods"] = _case(place, size, methods, peers, peer_limit, task)
                cases.append(case)
                if folder is None:
                    for path in place.iterdir():
                        path.unlink()
    return {
        "cases": cases,
        "settings": {"dims": dims, "k": k, "threads": threads, "queries": queries, "memory_mb": memory_mb},
        "note": (
            f"extrapolated: seconds for all pairs from {queries} queries against all pairs; recall over the same "
            "queries; ann is measured on all pairs"
        ),
    }


def write_pairs(folder: Path, size: int, dims: int, coupling: str, seed: int) -> None:
    """Write ``image.npy`` and ``text.npy``, float16 (size, dims), unless they are there; the module says how drawn."""
    paths = [folder / "image.npy", folder / "text.npy"]
    if (folder / "whole").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    draw = pair_source(dims, coupling, seed)
    files = [np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(size, dims)) for path in paths]
    for number, start in enumerate(range(0, size, CHUNK)):
        count = min(CHUNK, size - start)
        for file, side in zip(files, draw(number, count), strict=True):
            file[start : start + count] = side.half().numpy()
        release(*files)
    for file in files:
        file.flush()
    (folder / "whole").touch()


def pair_source(dims: int, coupling: str, seed: int) -> Callable[[int, int], list[torch.Tensor]]:
    """Return what draws unit rows (count, dims) of both modalities for a chunk's number."""
    world = torch_stream(seed, "mining-bench", "world", dims)
    topics = torch.randn(TOPICS, LATENT, generator=world)
    concepts = 0.8 * topics[torch.randint(TOPICS, (CONCEPTS,), generator=world)]
    concepts += 0.6 * torch.randn(CONCEPTS, LATENT, generator=world)
    popularity = torch.arange(1, CONCEPTS + 1).float() ** -0.8
    rank = torch.arange(1, LATENT + 1).float()
    maps, shifts = [], []
    for power, shift in ((0.5, 0.5), (1.0, 0.3)):
        spectrum = rank**-power
        scale = (spectrum.square().sum() * (1 + WITHIN**2 * FREEDOM / (FREEDOM - 2))).sqrt()
        maps.append(torch.randn(LATENT, dims, generator=world) * (spectrum / scale)[:, None])
        shifts.append(shift * torch.randn(dims, generator=world))
    shared = {"strong": LATENT, "weak": LATENT // 2, "none": 0}[coupling]

    def latents(count: int, generator: torch.Generator) -> torch.Tensor:
        chosen = concepts[torch.multinomial(popularity, count, True, generator=generator)]
        tail = torch.zeros(count)
        for _ in range(FREEDOM):
            tail += torch.randn(count, generator=generator).square()
        own = torch.randn(count, LATENT, generator=generator)
        return chosen + WITHIN * own / (tail / FREEDOM).sqrt().clamp(min=0.05)[:, None]

    def draw(number: int, count: int) -> list[torch.Tensor]:
        generator = torch_stream(seed, "mining-bench", coupling, dims, number)
        common = latents(count, generator)
        sides = []
        for side_map, shift in zip(maps, shifts, strict=True):
            seen = common
            if shared < LATENT:
                seen = latents(count, generator)
                keep = (
                    torch.arange(LATENT) % (LATENT // shared) == 0 if shared else torch.zeros(LATENT, dtype=torch.bool)
                )
                seen[:, keep] = common[:, keep]
            side = seen @ side_map + shift + NOISE * torch.randn(count, dims, generator=generator)
            sides.append(torch.nn.functional.normalize(side, dim=1))
        return sides

    return draw


def _case(
    place: Path, size: int, methods: Sequence[str], peers: Sequence[str], peer_limit: int, task: dict[str, Any]
) -> dict[str, Any]:
    """Measure every method on one set of features, exact first."""
    found: dict[str, Any] = {}
    reference: IntArray | None = None
    for method in sorted([*methods, *peers], key=lambda name: name != "exact"):
        if method in PEERS and not is_available("faiss"):
            found[method] = {"skipped": "faiss is not installed"}
            continue
        if method in PEERS and size > peer_limit:
            found[method] = {"skipped": f"more than peer_limit={peer_limit} pairs"}
            continue
        record, rows = measure_apart(task | {"folder": str(place), "method": method})
        if reference is None:
            reference = rows
        record["recall"] = round(recall(rows, reference), 4)
        for name, ratio in (("seconds", "speedup"), ("cpu_s", "cpu_speedup")):
            record[ratio] = round(found.get("exact", record)[name] / max(record[name], 1e-9), 2)
        found[method] = record
    return found


def recall(found: IntArray, exact: IntArray) -> float:
    """Return the share of the exact lists' entries that were found; (q, k) each, -1 for none."""
    hits = sum(len(np.intersect1d(a[a >= 0], b[b >= 0])) for a, b in zip(found, exact, strict=True))
    return hits / max(1, int((exact >= 0).sum()))


def measure_apart(task: dict[str, Any]) -> tuple[dict[str, Any], IntArray]:
    """Measure one method in a fresh process; return its record and the queries' lists.

    Raises:
        GenerationError: if the process did not end well, as when memory ran out.
    """
    said = run_apart(__name__, task, what=task["method"], limit_s=CHILD_LIMIT_S, hint="lower the sizes or memory_mb")
    answer = json.loads(said.splitlines()[-1])
    return answer["record"], np.array(answer["rows"], np.int64)


def measure(task: Mapping[str, Any]) -> tuple[dict[str, Any], IntArray]:
    """Measure one method in this process."""
    torch.set_num_threads(task["threads"])
    folder = Path(task["folder"])
    image, text = (np.load(folder / name, mmap_mode="r") for name in ("image.npy", "text.npy"))
    total, queries, k = len(image), task["queries"], task["k"]
    before = resident_mb("VmRSS")
    clock = _Clock()
    record: dict[str, Any] = {}
    if task["method"] == "ann":
        found = mine_ann(
            image,
            text,
            k,
            seed=task["seed"],
            memory_mb=task["memory_mb"],
            threads=task["threads"],
            **task["ann"],
        )
        rows = np.array(found.pairs[:queries])
        seconds, cpu = clock.lap()
        record |= {"extrapolated": False, "seconds": seconds, "cpu_s": cpu, "settings": found.settings}
    else:
        search, more = _prepared(task, image, text)
        setup, setup_cpu = clock.lap()
        rows = search()
        seconds, cpu = clock.lap()
        record |= {
            "extrapolated": True,
            "setup_s": round(setup, 2),
            "query_ms": round(1000 * seconds / queries, 4),
            "seconds": setup + seconds / queries * total,
            "cpu_s": setup_cpu + cpu / queries * total,
            **more,
        }
    highest = resident_mb("VmHWM")
    record["pairs_per_s"] = round(total / record["seconds"], 1)
    record["seconds"], record["cpu_s"] = round(record["seconds"], 1), round(record["cpu_s"], 1)
    record["peak_mb"] = None if highest is None else round(highest, 1)
    record["grown_mb"] = None if highest is None or before is None else round(highest - before, 1)
    return record, rows


def _prepared(
    task: Mapping[str, Any], image: NDArray[Any], text: NDArray[Any]
) -> tuple[Callable[[], IntArray], dict[str, Any]]:
    """Set a method up; return what finds the queries' lists, and what to note of it."""
    method, queries, k = task["method"], task["queries"], task["k"]
    scoring = Scoring()
    if method in ("exact", "fast"):
        features = Features(image, text, None, memory_mb=task["memory_mb"])
        base = None
        more = {}
        if method == "fast":
            size = min(task["fast_candidates"], len(image))
            base = subset_of_round(task["seed"], 0, len(image), size)
            more = {"candidates": size, "expected_recall": round(size / len(image), 4)}
        return lambda: search_block(features, 0, queries, base, k, scoring)[1], more
    faiss = require("faiss", extra="clip")
    faiss.omp_set_num_threads(task["threads"])
    rows = Rows(image, text)
    width = image.shape[1] + text.shape[1]
    lists = 2 ** max(2, round(float(np.log2(len(image)) / 2)))
    if method == "faiss_hnsw":
        index = faiss.IndexHNSWFlat(width, 24, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 60, 8 * k
        more = {"links": 24, "ef_search": 8 * k}
    elif method == "faiss_ivf":
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.min_points_per_centroid = 1
        index.nprobe = max(1, lists // 8)
        more = {"lists": lists, "probes": index.nprobe}
        chosen = np.unique(np.linspace(0, len(image) - 1, min(len(image), 64 * lists)).astype(np.int64))
        index.train(np.concatenate(rows.read(chosen), 1))
    else:
        index, more = faiss.IndexFlatIP(width), {}
    for start in range(0, len(image), CHUNK):
        index.add(np.concatenate(rows.read(slice(start, min(start + CHUNK, len(image)))), 1))

    def search() -> IntArray:
        query = rows.read(slice(0, queries))
        _, candidates = index.search(np.concatenate(query, 1), 4 * k + 1)
        exact: FloatArray = exact_scores(rows, None, np.arange(queries), query, candidates, scoring)
        return best_of(exact, candidates, candidates, k)[1]

    return search, more | {"candidates": 4 * k}


class _Clock:
    """Wall and processor seconds since the last lap, children left out."""

    def __init__(self) -> None:
        self.lap()

    def lap(self) -> tuple[float, float]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        now = (time.perf_counter(), used.ru_utime + used.ru_stime)
        before, self._last = getattr(self, "_last", now), now
        return now[0] - before[0], now[1] - before[1]


def plot(record: dict[str, Any], path: Path) -> None:
    """Draw recall against pairs a second, and peak memory against the number of pairs.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    require("matplotlib", extra="search")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    speed, memory = figure.subplots(1, 2)
    cases = record["results"]["cases"]
    names = sorted({name for case in cases for name in case["methods"]})
    marks = dict(zip(names, "os^Dvx*", strict=False))
    colours = dict(zip(sorted({case["pairs"] for case in cases}), ("C0", "C1", "C2", "C3", "C4", "C5"), strict=False))
    for case in cases:
        label = f"{case['pairs']:,} pairs"
        for name, row in case["methods"].items():
            if "skipped" in row:
                continue
            speed.plot(row["pairs_per_s"], row["recall"], marks[name], color=colours.get(case["pairs"], "C6"))
            speed.annotate(f"{name}, {label}", (row["pairs_per_s"], row["recall"]), fontsize=6)
    for name in names:
        rows = [(case["pairs"], case["methods"].get(name, {}).get("peak_mb")) for case in cases]
        known = sorted((size, peak) for size, peak in rows if peak)
        if known:
            memory.plot(*zip(*known, strict=True), marks[name] + "-", label=name)
    speed.set(xscale="log", xlabel="pairs a second", ylabel=f"recall@{record['config'].get('k', 50)}")
    memory.set(xscale="log", yscale="log", xlabel="pairs", ylabel="peak memory of the process, MB")
    if memory.lines:
        memory.legend(fontsize=7)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    _record, _rows = measure(json.loads(sys.argv[1]))
    sys.stdout.write(json.dumps({"record": _record, "rows": _rows.tolist()}) + "\n")
