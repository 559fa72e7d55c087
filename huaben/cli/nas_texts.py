"""Words of ``huaben nas``, in English and Chinese; both catalogues have the same keys."""

from __future__ import annotations

from .words import language

NAS_TEXTS: dict[str, dict[str, str]] = {
    "en": {
        "nas": "Search for the architecture to train: ask, train, tell; or replay a table.",
        "ask": "Print the next architectures to evaluate.",
        "best": "best: {arch} with {value:.6g} after {used} of {budget} evaluations",
        "budget": "Evaluations at most.",
        "command": "Command that trains one architecture; {{arch}}, {{id}} and {{values}} (JSON) are filled in. The last line "
        "it prints is the metric.",
        "count": "How many.",
        "direction": "Whether a higher (max) or lower (min) metric is better.",
        "done": "nothing is left to ask",
        "error": "Why it did not complete.",
        "folder": "Folder of the search.",
        "form": "html or md.",
        "id": "Number of the trial, as asked.",
        "method": "What proposes: {methods}.",
        "no_best": "no evaluation has finished; {used} of {budget} were started",
        "parallel": "Evaluations at a time.",
        "pictures": "Draw pictures (needs Matplotlib).",
        "report": "Write a report: ranking, relations, best value so far.",
        "report_written": "the report is {path}",
        "search": "Search until the budget is spent; an existing folder goes on.",
        "seed": "Seed of everything random.",
        "set": "Setting of the method, as NAME=VALUE (predictor.width=32); repeatable.",
        "sources": "CSV of evaluated architectures of other tasks: columns arch and one per task. [default: the other "
        "columns of --table]",
        "space": "Describe a search space: a name ({names}) or a JSON file.",
        "space_option": "Search space: {names}, or a JSON file.",
        "space_sample": "Architectures to sample as examples.",
        "standing": "place {rank} of the {count} in the table: the best {percentile:.4g} %",
        "state": "complete, failed, pruned or lost.",
        "table": "CSV that already holds the metric of every architecture (column of the task): a replay.",
        "task": "Name of the task; the column of --table.",
        "tell": "Report the metric of an architecture, or that it failed.",
        "timeout": "Seconds per evaluation.",
        "told": "trial {id} is {state}",
        "value": "The metric.",
    },
    "zh": {
        "nas": "搜索该训练哪个架构：要一个、训练、报告结果；或回放一张表。",
        "ask": "打印接下来要评估的架构。",
        "best": "最好：{arch}，{value:.6g}，用了 {budget} 次评估中的 {used} 次",
        "budget": "最多评估多少次。",
        "command": "训练一个架构的命令：会填入 {{arch}}、{{id}} 和 {{values}}（JSON）；它打印的最后一行是指标。",
        "count": "多少个。",
        "direction": "指标越高越好（max）还是越低越好（min）。",
        "done": "没有可以再要的了",
        "error": "为什么没有完成。",
        "folder": "搜索的目录。",
        "form": "html 或 md。",
        "id": "试验的编号，与给出时一致。",
        "method": "由什么来提议：{methods}。",
        "no_best": "还没有完成的评估；{budget} 次中已开始 {used} 次",
        "parallel": "同时评估多少个。",
        "pictures": "画图（需要 Matplotlib）。",
        "report": "写一份报告：排名、关系、目前最好的值。",
        "report_written": "报告在 {path}",
        "search": "搜索到用完预算为止；已有的目录会接着进行。",
        "seed": "所有随机性的种子。",
        "set": "方法的设置，写成 NAME=VALUE（如 predictor.width=32），可重复。",
        "sources": "其他任务上已评估架构的 CSV：一列 arch，每个任务一列。[默认：--table 的其他列]",
        "space": "描述一个搜索空间：名字（{names}）或 JSON 文件。",
        "space_option": "搜索空间：{names}，或 JSON 文件。",
        "space_sample": "抽多少个架构作例子。",
        "standing": "在表中的 {count} 个里排第 {rank}：前 {percentile:.4g} %",
        "state": "complete、failed、pruned 或 lost。",
        "table": "已有每个架构指标（任务那一列）的 CSV：回放。",
        "task": "任务的名字；也是 --table 里的列名。",
        "tell": "报告一个架构的指标，或报告失败。",
        "timeout": "每次评估的秒数。",
        "told": "试验 {id}：{state}",
        "value": "指标。",
    },
}


def nas_text(key: str, **values: object) -> str:
    """Return one entry in the language of the command line."""
    return NAS_TEXTS[language()][key].format(**values)
