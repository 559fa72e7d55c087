"""A report of a search: what was found, how sure the ranking is, and how the best value grew; as HTML or Markdown.

Pictures are drawn with Matplotlib, which is optional and imported when asked for. Words are English or Chinese; what
stands inside the pictures is English, since Matplotlib's own font has no Chinese.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import ConfigError
from ..files import write_bytes
from ..optional import require
from .order import Dag, mwas
from .search import ArchGraph
from .searcher import Ranked, Searcher, SearchResult

Language = Literal["en", "zh"]
CURVE_NAME, RELATIONS_NAME = "curve.png", "relations.png"

REPORT_WORDS: dict[str, dict[str, str]] = {
    "en": {
        "title": "Architecture search: {task}",
        "best": "Best: {arch} with {value:.6g} ({direction}, {mode} epoch)",
        "none": "No evaluation has finished.",
        "cost": "{used} of {budget} evaluations, {sources} values of source tasks, {cpu:.1f} s of proposing "
        "({method}, seed {seed}).",
        "ranking": "Ranking",
        "rank": "rank",
        "arch": "architecture",
        "score": "score",
        "spread": "±",
        "value": "value",
        "sure": "beats the next",
        "ranking_note": "Score: mean probability of beating another candidate, ± its deviation between predictors. “Beats "
        "the next”: predicted probability.",
        "curve": "Best value so far",
        "relations": "Relations of the first candidates",
        "relations_note": "From top to bottom: better to worse. Right: trusted relations that were kept, stronger ones "
        "darker. Left, red: relations that closed a cycle and were dropped. Filled: evaluated.",
        "trials": "Evaluations",
        "state": "state",
        "origin": "why",
        "error": "error",
        "notes": "Notes",
    },
    "zh": {
        "title": "架构搜索：{task}",
        "best": "最好：{arch}，{value:.6g}（{direction}，{mode} 轮）",
        "none": "还没有完成的评估。",
        "cost": "用了 {budget} 次评估中的 {used} 次，{sources} 个源任务的值，提议耗时 {cpu:.1f} 秒（{method}，种子 {seed}）。",
        "ranking": "排名",
        "rank": "名次",
        "arch": "架构",
        "score": "得分",
        "spread": "±",
        "value": "值",
        "sure": "胜过下一名",
        "ranking_note": "得分：胜过另一候选的平均概率，± 是各预测器之间的标准差。“胜过下一名”：预测的概率。",
        "curve": "目前最好的值",
        "relations": "前几名之间的关系",
        "relations_note": "从上到下由好到差。右边：保留的可信关系，越强越深。左边红色：会成环而舍去的关系。实心：已评估。",
        "trials": "各次评估",
        "state": "状态",
        "origin": "来由",
        "error": "错误",
        "notes": "说明",
    },
}


def write_report(
    search: Searcher,
    folder: str | Path,
    *,
    form: Literal["html", "md"] = "html",
    language: Language = "en",
    top: int = 12,
    optimum: float | None = None,
    pictures: bool = True,
) -> Path:
    """Write ``report.html`` or ``report.md``, and its pictures, into a folder.

    Args:
        search: at any time; a method that predicts relations is fitted on everything told so far.
        folder: made if absent.
        form: of the text.
        language: of the words.
        top: places of the ranking that are shown.
        optimum: best value possible, where it is known: the curve then shows the regret.
        pictures: needs Matplotlib.

    Returns:
        The path of the text.

    Raises:
        ConfigError: for an unknown form or language, or ``top`` below 1.
        MissingDependencyError: for pictures without Matplotlib.
        StoreError: if the folder cannot be written.
    """
    if form not in ("html", "md") or language not in REPORT_WORDS or top < 1:
        raise ConfigError(
            f"form={form!r}, language={language!r}, top={top!r}", hint="use html or md, en or zh, and 1 or more"
        )
    folder, words = Path(folder), REPORT_WORDS[language]
    if pictures:
        require("matplotlib", extra="search")
    result = search.result()
    places = list(result.ranking[:top])
    matrix: Any = None
    if isinstance(search, ArchGraph) and len(places) > 1:
        matrix, _ = search.relation_matrix([place.arch for place in places])
    blocks: list[tuple[str, Any]] = [
        ("title", words["title"].format(task=result.task)),
        ("text", _headline(result, words)),
        ("text", _cost(result, words)),
        ("heading", words["ranking"]),
        ("table", _ranking_rows(places, matrix, words)),
        ("text", words["ranking_note"]),
    ]
    if pictures:
        blocks += [("heading", words["curve"]), ("picture", CURVE_NAME)]
        draw_curve(result, folder / CURVE_NAME, optimum=optimum)
        if matrix is not None:
            dag = mwas(matrix, keys=[place.text for place in places])
            draw_relations(places, matrix, dag, folder / RELATIONS_NAME)
            blocks += [("heading", words["relations"]), ("picture", RELATIONS_NAME), ("text", words["relations_note"])]
    blocks += [("heading", words["trials"]), ("table", _trial_rows(result, words))]
    if result.notes:
        blocks += [("heading", words["notes"]), *(("text", note) for note in result.notes)]
    path = folder / f"report.{form}"
    render = _html if form == "html" else _markdown
    write_bytes(path, render(blocks, language).encode("utf-8"))
    return path


def _headline(result: SearchResult, words: dict[str, str]) -> str:
    if result.best is None or result.best.value is None:
        return words["none"]
    best = result.best
    return words["best"].format(arch=best.text, value=best.value, direction=result.direction, mode=result.metric_mode)


def _cost(result: SearchResult, words: dict[str, str]) -> str:
    return words["cost"].format(
        used=result.used,
        budget=result.budget,
        sources=result.source_evaluations,
        cpu=result.cpu_seconds,
        method=result.method,
        seed=result.seed,
    )


def _ranking_rows(places: Sequence[Ranked], matrix: Any, words: dict[str, str]) -> list[list[str]]:
    rows = [[words[name] for name in ("rank", "arch", "score", "spread", "sure", "value")]]
    for number, place in enumerate(places):
        sure = "" if matrix is None or number + 1 >= len(places) else f"{matrix[number, number + 1]:.2f}"
        spread = "" if place.spread is None else f"{place.spread:.3f}"
        value = "" if place.value is None else f"{place.value:.6g}"
        rows.append([str(number + 1), place.text, f"{place.score:.4g}", spread, sure, value])
    return rows


def _trial_rows(result: SearchResult, words: dict[str, str]) -> list[list[str]]:
    rows = [["#", *(words[name] for name in ("arch", "origin", "state", "value", "error"))]]
    for trial in result.trials:
        value = "" if trial.value is None else f"{trial.value:.6g}"
        rows.append([str(trial.id), trial.text, trial.origin, trial.state, value, trial.error])
    return rows


def _html(blocks: Sequence[tuple[str, Any]], language: Language) -> str:
    parts: list[str] = []
    for kind, content in blocks:
        if kind == "table":
            head, *body = content
            lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
            lines += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body]
            parts.append("<table>\n" + "\n".join(lines) + "\n</table>")
        elif kind == "picture":
            parts.append(f'<img src="{html.escape(content)}" alt="{html.escape(content)}">')
        else:
            tag = {"title": "h1", "heading": "h2", "text": "p"}[kind]
            parts.append(f"<{tag}>{html.escape(content)}</{tag}>")
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
        "table{border-collapse:collapse}td,th{padding:.15em .7em;border-bottom:1px solid #ccc;text-align:left}"
        "img{max-width:100%}"
    )
    title = html.escape(blocks[0][1])
    return (
        f'<!doctype html>\n<html lang="{language}">\n<head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{style}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _markdown(blocks: Sequence[tuple[str, Any]], language: Language) -> str:
    parts: list[str] = []
    for kind, content in blocks:
        if kind == "table":
            head, *body = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in content]
            lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
            parts.append("\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)]))
        elif kind == "picture":
            parts.append(f"![{content}]({content})")
        else:
            parts.append({"title": "# ", "heading": "## ", "text": ""}[kind] + content)
    return "\n\n".join(parts) + "\n"


def draw_curve(result: SearchResult, path: Path, *, optimum: float | None = None) -> None:
    """Draw the best value after every started evaluation, or its distance to ``optimum``.

    Raises:
        MissingDependencyError: without Matplotlib.
    """
    figure = require("matplotlib.figure", extra="search").Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    curve = [np.nan if value is None else value for value in result.best_so_far()]
    if optimum is not None:
        curve = [abs(optimum - value) for value in curve]
    axes.step(range(1, len(curve) + 1), curve, where="post")
    values = [(trial.id, trial.value) for trial in result.trials if trial.round >= 0 and trial.value is not None]
    if values and optimum is None:
        started = {trial.id: place for place, trial in enumerate(t for t in result.trials if t.round >= 0)}
        axes.plot([started[i] + 1 for i, _ in values], [v for _, v in values], ".", color="grey", markersize=4)
    axes.set_xlabel("evaluations")
    axes.set_ylabel("regret" if optimum is not None else "best value")
    _save(figure, path)


def draw_relations(places: Sequence[Ranked], matrix: Any, dag: Dag, path: Path) -> None:
    """Draw the acyclic relation graph of the first places, top to bottom.

    Args:
        places: best first.
        matrix: (n, n) probabilities that the row beats the column.
        dag: of ``matrix``.
        path: PNG.

    Raises:
        MissingDependencyError: without Matplotlib.
    """
    patches = require("matplotlib.patches", extra="search")
    figure = require("matplotlib.figure", extra="search").Figure(
        figsize=(7, 0.45 * len(places) + 0.8), layout="constrained"
    )
    axes = figure.subplots()
    rows = dag.order().tolist()
    height = {node: -rank for rank, node in enumerate(rows)}
    strongest = max(float(np.abs(np.asarray(matrix) - 0.5).max()), 1e-9)

    def arrow(winner: int, loser: int, colour: str) -> None:
        # Bends to the right of a downward arrow and to the left of an upward one.
        strength = abs(float(matrix[winner, loser]) - 0.5) / strongest
        axes.add_patch(
            patches.FancyArrowPatch(
                (0, height[winner]),
                (0, height[loser]),
                connectionstyle="arc3,rad=-0.35",
                arrowstyle="-|>",
                mutation_scale=7,
                color=colour,
                alpha=0.1 + 0.8 * strength,
                linewidth=0.8,
                shrinkA=6,
                shrinkB=6,
            )
        )

    for winner, loser in np.argwhere(dag.edges).tolist():
        arrow(winner, loser, "black")
    for winner, loser in dag.dropped_edges.tolist():
        arrow(winner, loser, "red")
    reach = 0.25 * len(places) + 0.5
    for node, place in enumerate(places):
        filled = place.value is not None
        axes.plot(0, height[node], "o", color="tab:blue", markerfacecolor="tab:blue" if filled else "white", zorder=3)
        note = "" if place.value is None else f"   ({place.value:.5g})"
        axes.text(reach, height[node], f"{place.text}{note}", va="center", fontsize=8)
    axes.set_xlim(-reach, reach * 2.5)
    axes.set_ylim(-len(places) + 0.3, 0.7)
    axes.axis("off")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    """Write a PNG whole or not at all."""
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_bytes(path, buffer.getvalue())
