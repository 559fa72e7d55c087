"""Statistics of the transfer measurement: summaries, paired tests, nested choice, and what training noise leaves to find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..archsearch.task import TaskTable
from ..errors import DataError
from ..optional import require
from ..rng import numpy_stream
from .experiment import bootstrap

Scores = Mapping[tuple[str, int], float]
"""(target, seed) to percent rank."""

TOP_SHARES = (0.29, 1.0, 5.0)
"""Percent ranks within which runs are counted; the first is the wider of the published averages."""


def summary(runs: Sequence[Mapping[str, Any]], budgets: Sequence[int], seed: int) -> dict[str, Any]:
    """Summarise the runs of one method.

    Args:
        runs: records as :mod:`~huaben.bench.transfer` keeps them: target, seed, percent (a curve), regret, costs.
        budgets: where the curve is read.
        seed: of the bootstrap.

    Returns:
        ``percent``: mean over tasks with a bootstrap interval over seeds, since runs of one seed share their sources;
        median and worst run, mean of every task, the worst task, the curve, regret, shares near the top, and costs.
    """
    final = {(run["target"], run["seed"]): run["percent"][-1] for run in runs}
    targets, seeds = sorted({t for t, _ in final}), sorted({s for _, s in final})
    by_seed = [float(np.mean([final[t, s] for t in targets if (t, s) in final])) for s in seeds]
    per_task = {t: float(np.mean([final[t, s] for s in seeds if (t, s) in final])) for t in targets}
    values = np.asarray(list(final.values()))
    worst = max(per_task, key=per_task.__getitem__)
    regrets = np.asarray([run["regret"] for run in runs])
    return {
        "percent": bootstrap(by_seed, seed, "percent"),
        "median": round(float(np.median(values)), 4),
        "worst_run": round(float(values.max()), 4),
        "worst_task": {"task": worst, "mean": round(per_task[worst], 4)},
        "per_task": {task: round(value, 4) for task, value in per_task.items()},
        "curve": {
            str(budget): round(
                float(np.mean([run["percent"][min(budget, len(run["percent"])) - 1] for run in runs])), 4
            )
            for budget in budgets
        },
        "regret": {"mean": round(float(regrets.mean()), 4), "median": round(float(np.median(regrets)), 4)},
        "within_top": {f"{share:g}": round(float((values <= share).mean()), 4) for share in TOP_SHARES},
        "cpu_seconds": round(float(np.mean([run["cpu_seconds"] for run in runs])), 2),
        "source_cpu_seconds": round(float(np.mean([run["source_cpu_seconds"] for run in runs])), 2),
        "evaluations": round(float(np.mean([run["evaluations"] for run in runs])), 2),
        "source_evaluations": int(np.max([run["source_evaluations"] for run in runs])),
        "runs": len(runs),
        "seeds": len(seeds),
    }


def compare(reference: Scores, others: Mapping[str, Scores]) -> dict[str, Any]:
    """Compare a method with others by a paired Wilcoxon test over (target, seed), corrected by Holm.

    Returns:
        Per other method: number of pairs, mean difference (reference minus other; negative: the reference is better),
        pairs better, tied and worse, ``p`` and ``p_holm``. Runs of one seed share their sources, so p is indicative.

    Raises:
        MissingDependencyError: without SciPy.
    """
    stats = require("scipy.stats", extra="search")
    found: dict[str, Any] = {}
    for name, scores in others.items():
        pairs = sorted(reference.keys() & scores.keys())
        if not pairs:
            continue
        gaps = np.asarray([reference[pair] - scores[pair] for pair in pairs])
        p = float(stats.wilcoxon(gaps).pvalue) if np.count_nonzero(gaps) else 1.0
        found[name] = {
            "pairs": len(pairs),
            "mean_difference": round(float(gaps.mean()), 4),
            "better": int((gaps < 0).sum()),
            "tied": int((gaps == 0).sum()),
            "worse": int((gaps > 0).sum()),
            "p": p,
        }
    for name, corrected in holm({name: row["p"] for name, row in found.items()}).items():
        found[name]["p_holm"] = round(corrected, 6)
        found[name]["p"] = round(found[name]["p"], 6)
    return found


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's step-down correction of p-values: family-wise, without assumptions on their dependence."""
    corrected: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(values, key=values.__getitem__)):
        largest = max(largest, min(1.0, values[name] * (len(values) - place)))
        corrected[name] = largest
    return corrected


def nested_choice(configurations: Mapping[str, Scores]) -> dict[str, Any]:
    """Choose a configuration for every target by its mean on the *other* targets, and report that.

    The best of many configurations on the reported targets is optimistic; this is not.

    Returns:
        ``chosen`` target to configuration, ``per_task`` and ``mean`` percent rank of the chosen, ``best_in_hindsight``
        the lowest mean of a single configuration, for contrast.

    Raises:
        DataError: with fewer than two targets, or configurations run on different targets.
    """
    targets = sorted({target for scores in configurations.values() for target, _ in scores})
    means: dict[str, dict[str, float]] = {}
    for name, scores in configurations.items():
        by_task = {t: [value for (target, _), value in scores.items() if target == t] for t in targets}
        missing = [task for task, values in by_task.items() if not values]
        if missing:
            raise DataError(f"configuration {name!r} was not run on {', '.join(missing)}", hint="run all on all")
        means[name] = {task: float(np.mean(values)) for task, values in by_task.items()}
    if len(targets) < 2 or not means:
        raise DataError(f"{len(targets)} targets and {len(means)} configurations", hint="two targets at least")
    chosen, found = {}, {}
    for target in targets:
        others = {name: float(np.mean([m[t] for t in targets if t != target])) for name, m in means.items()}
        chosen[target] = min(sorted(others), key=others.__getitem__)
        found[target] = round(means[chosen[target]][target], 4)
    single = {name: float(np.mean(list(m.values()))) for name, m in means.items()}
    best = min(sorted(single), key=single.__getitem__)
    return {
        "chosen": chosen,
        "per_task": found,
        "mean": round(float(np.mean(list(found.values()))), 4),
        "best_in_hindsight": {"configuration": best, "mean": round(single[best], 4)},
    }


def noise_limit(
    table: TaskTable, tables: Sequence[TaskTable], budget: int, seed: int, *, draws: int = 200
) -> dict[str, Any]:
    """Return what an oracle would find that knows every architecture's expected value, but not the luck of its run.

    Rows of one canonical form with different values are separate trainings of the same function (rows that agree on all
    tasks are one training, copied). Their pooled deviation, where the mean is in the task's top fifth, is the noise.
    What a value says about its expectation follows by Tweedie's formula from the density of all values and that noise;
    expectations are drawn from it, the ``budget`` best are "evaluated" as the table has them, and the best of those is
    ranked. An approximation: noise is taken as normal and equal near the top.

    Args:
        table: complete table of the task.
        tables: of all tasks, to tell copies from separate trainings.
        budget: evaluations of the oracle.
        seed: of the draws.
        draws: how often.

    Returns:
        ``percent`` mean rank in percent that the oracle reaches, ``noise`` the standard deviation between twins,
        ``top_decile`` that of the values in the top tenth, ``twins`` forms it was estimated from, ``single_pick``
        the mean rank in percent of the one architecture of the highest expectation.
    """
    groups: dict[str, dict[tuple[float, ...], float]] = {}
    first: dict[str, float] = {}
    for arch in table.archs:
        key, value = table.space.canonical(arch), table.oriented(arch)
        groups.setdefault(key, {})[tuple(other.raw.get(arch, np.nan) for other in tables)] = value
        first.setdefault(key, value)
    all_values = table.oriented_values()
    top = np.quantile(all_values, 0.8)
    twins = [np.asarray(list(runs.values())) for runs in groups.values() if len(runs) > 1]
    twins = [runs for runs in twins if runs.mean() >= top]
    if not twins:
        return {"percent": None, "noise": None, "top_decile": None, "twins": 0, "single_pick": None}
    noise = float(np.sqrt(sum(((r - r.mean()) ** 2).sum() for r in twins) / sum(len(r) - 1 for r in twins)))
    means = np.asarray([float(np.mean(list(groups[key].values()))) for key in first])
    counts = np.asarray([len(groups[key]) for key in first])
    shown = np.asarray(list(first.values()))
    variance = noise**2 / counts
    slope, curvature = _log_density_slopes(means, variance, means[means >= np.quantile(means, 0.8)])
    centre = means + variance * slope
    spread = np.sqrt(np.clip(variance * (1 + variance * curvature), 0.05 * variance, variance))
    rng = numpy_stream(seed, "noise limit", table.spec.name)
    found, single = [], []
    for _ in range(draws):
        truth = centre + spread * rng.standard_normal(len(centre))
        best = np.argsort(-truth)[:budget]
        found.append(table.rank_percent(float(shown[best].max())))
        single.append(table.rank_percent(float(shown[best[0]])))
    return {
        "percent": round(float(np.mean(found)), 4),
        "single_pick": round(float(np.mean(single)), 4),
        "noise": noise,
        "top_decile": float(all_values[all_values >= np.quantile(all_values, 0.9)].std()),
        "twins": len(twins),
    }


def _log_density_slopes(
    values: npt.NDArray[np.float64], variance: npt.NDArray[np.float64], near: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return first and second derivative of the log density of ``values`` at each of them.

    A normal kernel as wide as Silverman's rule says for the values ``near`` the top, but no narrower than the noise.
    """
    silverman = 1.06 * near.std() * len(near) ** -0.2
    width = max(silverman, float(np.sqrt(variance.max())), 1e-12)
    z = (values[:, None] - values[None, :]) / width
    kernel = np.exp(-0.5 * z**2)
    density = kernel.sum(1)
    first = -(z * kernel).sum(1) / width / density
    second = ((z**2 - 1) * kernel).sum(1) / width**2 / density
    return first, second - first**2
