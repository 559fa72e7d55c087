"""The README's tables, written from ``experiments/NAME/results.json``: ``python -m huaben.bench.tables [--check]``.

A table stands between ``<!-- results:NAME -->`` and ``<!-- /results -->``; what is between them is replaced as a whole.
Where an experiment was not run there is no table. ``results:hardware`` says once what the numbers were measured on.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError, HuabenError
from ..files import write_bytes

Language = Literal["en", "zh"]
Cell = str | None
"""A cell's text; None where the results say nothing."""

READMES: dict[str, Language] = {"README.md": "en", "README.zh.md": "zh"}
HARDWARE = "hardware"
ABSENT = "–"
BLOCK = re.compile(r"(<!-- results:(?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- /results -->)", re.DOTALL)

WORDS: dict[str, tuple[str, str]] = {
    "raw": ("settings and raw numbers", "设置与原始数据"),
    "measured_on": ("Measured on {machine}: {names}.", "测量环境：{machine}（{names}）。"),
    "cpus": ("{cpus} CPU cores", "{cpus} 个 CPU 核"),
    "no_gpu": ("no GPU", "无 GPU"),
    "chance": ("guessing", "随机猜测"),
    "characters": ("characters", "角色数"),
    "pictures": ("pictures", "图片数"),
    "condition": ("picture", "图片"),
    # detector
    "detector": ("Reading pictures back", "读图"),
    "detector_note": (
        "Every score below is read off by this detector. Fresh pictures, 95 % intervals; identity: the right one of 20 "
        "individuals of the same species and colour.",
        "下面所有分数都由这个检测器读出。全新图片，95 % 区间；“个体”指从 20 个同物种同颜色的个体中认出正确的一个。",
    ),
    "species_colour": ("species and colour", "物种与颜色"),
    "accessory": ("accessory", "配饰"),
    "box_iou": ("box IoU", "框 IoU"),
    "identity": ("identity, 1 of 20", "个体（20 选 1）"),
    "n_detector": ("n (characters / individuals)", "n（角色 / 个体）"),
    "clean": ("clean", "原图"),
    "blur 1": ("blurred, σ = 1 px", "模糊，σ = 1 像素"),
    "blur 2": ("blurred, σ = 2 px", "模糊，σ = 2 像素"),
    "noise 0.05": ("noise, σ = 0.05", "噪声，σ = 0.05"),
    "noise 0.1": ("noise, σ = 0.1", "噪声，σ = 0.1"),
    # painter
    "painter": ("Drawing what was asked for", "按要求作画"),
    "painter_note": (
        "Share of the characters asked for, read back by the detector; mean over pictures with 95 % bootstrap intervals. "
        "“all three”: species, colour and (with boxes) place; “whole picture”: so for everybody, and nobody is added.",
        "所要求角色中画对的比例，由检测器读回；对图片取平均，95 % 自助法区间。“三项全对”指物种、颜色和（有框时）位置都对；"
        "“整幅全对”指所有角色都如此，且没有多余的角色。",
    ),
    "prompts": ("prompts", "提示"),
    "placed": ("place", "位置"),
    "right": ("all three", "三项全对"),
    "whole_picture": ("whole picture right", "整幅全对"),
    "sketched_1": ("after a sketch: 1 character", "有草图：1 个角色"),
    "sketched_2": ("after a sketch: 2 characters", "有草图：2 个角色"),
    "sketched_3": ("after a sketch: 3 characters", "有草图：3 个角色"),
    "sketched_en": ("after a sketch: 1 to 3, English", "有草图：1 至 3 个，英文"),
    "sketched_zh": ("after a sketch: 1 to 3, Chinese", "有草图：1 至 3 个，中文"),
    "sketched_composition_all": ("after a sketch: combinations never trained", "有草图：从未训练过的组合"),
    "sketched_paraphrase_all": ("after a sketch: sentences never trained", "有草图：从未训练过的句式"),
    "fresh_1": ("phrase and box only: 1 character", "只有短语和框：1 个角色"),
    "fresh_2": ("phrase and box only: 2 characters", "只有短语和框：2 个角色"),
    "fresh_3": ("phrase and box only: 3 characters", "只有短语和框：3 个角色"),
    "composition_all": ("phrase and box only: combinations never trained", "只有短语和框：从未训练过的组合"),
    "paraphrase_all": ("phrase and box only: sentences never trained", "只有短语和框：从未训练过的句式"),
    "text_only_all": ("words alone, without boxes", "只有文字，没有框"),
    "fresh_renderer": ("the same scenes drawn exactly", "同样的场景精确绘制"),
    # story
    "story": ("The same individual from page to page", "逐页保持同一个体"),
    "story_note": (
        "Four-page stories with one character; is it, on pages 2 to 4, closest to the individual of its own page 1 among "
        "20 of the same species and colour? Mean over stories, 95 % bootstrap intervals.",
        "四页故事，一个角色；在第 2 至 4 页上，它是否在 20 个同物种同颜色的个体中最像自己第 1 页的样子？"
        "对故事取平均，95 % 自助法区间。",
    ),
    "arm": ("pages drawn", "作画方式"),
    "right_individual": ("right individual", "认对个体"),
    "recognised": ("species and colour recognised", "物种与颜色认出"),
    "similarity": ("similarity to page 1", "与第 1 页的相似度"),
    "stories": ("stories", "故事数"),
    "reference": ("with the character's first picture", "带角色的第一张图"),
    "baseline": ("same seeds, words and boxes alone", "同样的种子，只用文字和框"),
    "gain": ("difference, story by story", "逐个故事之差"),
    "renderer": ("drawn exactly", "精确绘制"),
    # conversations
    "conversations": ("Understanding conversations", "听懂对话"),
    "conversations_note": (
        "Hand-written four-turn conversations with the right page after every turn, facts and identities included.",
        "手写的四轮对话，每一轮后的正确页面（内容与角色身份）都已标注。",
    ),
    "scripts": ("conversations", "对话"),
    "pages": ("right pages", "页面正确"),
    "turns": ("turns with everything right", "整轮全对"),
    "whole": ("whole conversations right", "整段对话全对"),
    "batch_1": ("used while writing the grammar", "编写语法时用过的"),
    "batch_2": (
        "written later; few corrections followed (77.5 % of turns before them)",
        "后来写的；之后有少量修正（修正前 77.5 %）",
    ),
    # speed
    "draw_speed": ("One picture", "画一张图"),
    "draw_speed_note": (
        "{size} × {size} px, {steps} steps; median seconds (lowest to highest). Cold: the whole command in a new process.",
        "{size} × {size} 像素，{steps} 步；秒数取中位数（最低至最高）。冷启动：新进程中的整条命令。",
    ),
    "way": ("how", "方式"),
    "total": ("total s", "总计（秒）"),
    "text": ("words s", "文字（秒）"),
    "sampling": ("sampling s", "采样（秒）"),
    "decode": ("decoding s", "解码（秒）"),
    "memory": ("peak memory", "峰值内存"),
    "repeats": ("n", "n"),
    "threads": ("warm, {count} threads", "热启动，{count} 线程"),
    "thread": ("warm, 1 thread", "热启动，1 线程"),
    "cold": ("cold: {command}", "冷启动：{command}"),
    "import_torch": ("cold: `import torch` alone", "冷启动：仅 `import torch`"),
    "dit_speed": ("Hunyuan-DiT sampling beside diffusers", "Hunyuan-DiT 采样，与 diffusers 对比"),
    "dit_speed_note": (
        "Same weights, features, noise and process, in turns; {steps} guided steps, {parameters} M parameters, {dtype}, "
        "{threads} threads. Median seconds (lowest to highest).",
        "同样的权重、特征、噪声和进程，轮流运行；{steps} 步带引导，{parameters} M 参数，{dtype}，{threads} 线程。"
        "秒数取中位数（最低至最高）。",
    ),
    "tokens": ("image tokens", "图像 token"),
    "ours": ("huaben s", "huaben（秒）"),
    "theirs": ("diffusers s", "diffusers（秒）"),
    "ratio": ("diffusers / huaben", "diffusers / huaben"),
    "difference": ("largest difference of latents", "潜变量最大差"),
    "world_speed": ("Drawing the embedded world", "绘制内置世界"),
    "world_speed_note": (
        "New scenes of {size} × {size} px a second of one core's time (lowest to highest of the repeats).",
        "单核每秒 CPU 时间绘制的 {size} × {size} 像素新场景数（各次重复的最低至最高）。",
    ),
    "work": ("work", "工作"),
    "per_second": ("scenes a second", "场景 / 秒"),
    "render": ("drawing", "绘制"),
    "render_with_masks": ("drawing with masks", "绘制并给出掩码"),
    "sample": ("inventing scenes", "生成场景"),
    "sample_and_render": ("inventing and drawing", "生成并绘制"),
    # extrapolation
    "extrapolation": ("Longer contexts than in training", "比训练更长的上下文"),
    "extrapolation_note": (
        "Perplexity per byte of the same last {shared} bytes with ever more context before them: small decoders trained "
        "for {steps} steps on windows of {train_length} bytes; 95 % intervals over windows, means over seeds.",
        "同样的最后 {shared} 个字节，前面的上下文越来越长时的每字节困惑度："
        "小解码器只在 {train_length} 字节的窗口上训练了 {steps} 步；"
        "区间为对窗口的 95 % 区间，对种子取平均。",
    ),
    "positions": ("positions", "位置方案"),
    "context": ("{length} bytes", "{length} 字节"),
    "seeds": ("seeds", "种子数"),
    # recall
    "recall": ("Associative recall with one attention layer", "一层注意力的联想记忆"),
    "recall_note": (
        "Eight pairs, then a key: what was its value? Guessing one of the values shown is right a quarter of the time.",
        "先给出八对键值，再问其中一个键的值。在出现过的值里随便猜，约四分之一能对。",
    ),
    "accuracy": ("accuracy", "准确率"),
    # transfer
    "transfer": ("Architecture search within 50 evaluations", "50 次评估内的架构搜索"),
    "transfer_note": (
        "TransNAS-Bench-101, {rows} micro cells, each of seven tasks as target, the other six as sources: place of the best "
        "found, in per cent of the table (lower is better); mean over tasks, 95 % intervals over seeds.",
        "TransNAS-Bench-101 的 {rows} 个微观单元，七个任务轮流作目标，其余六个作来源："
        "找到的最好架构在整张表中的名次百分比（越低越好）；"
        "对任务取平均，95 % 区间对种子。",
    ),
    "method": ("method", "方法"),
    "after": ("after {budget}", "{budget} 次后"),
    "median": ("median run", "中位数"),
    "worst_task": ("worst task", "最差任务"),
    "cpu": ("CPU s a search", "每次搜索 CPU 秒"),
    "published": ("published by the paper’s authors, another metric", "论文作者公布，指标不同"),
    "noise": ("limit by training noise", "训练噪声的极限"),
    # HELIP
    "hard_pairs_emoji": ("Hard pairs on real emoji", "真实表情符号上的困难样本对"),
    "hard_pairs_emoji_note": (
        "A small CLIP trained on {seen} emoji with names in both languages, then continued in each way with the same "
        "schedule and as many pictures seen; R@1 in per cent, mean of both directions and languages. Beside it the paired "
        "difference to plain continued training in points, {n} pairs of base and seed, 95 % intervals.",
        "先用 {seen} 个带中英文名称的表情符号训练一个小 CLIP，再以相同的学习率安排、相同的样本量按各种方式继续训练；"
        "R@1 为百分数，取两个方向、两种语言的平均。旁边是与普通继续训练的配对差（百分点），{n} 对底模与种子，95 % 区间。",
    ),
    "hard_pairs_world": ("Hard pairs among near-identical scenes", "近乎相同的场景里的困难样本对"),
    "hard_pairs_world_note": (
        "Scenes of the embedded world in families that differ by one attribute. R@1 in per cent within a new family "
        "(guessing: {chance:.1f}) and among 1,000 unrelated scenes; differences to plain continued training at equal "
        "samples in points, {n} seeds, 95 % intervals.",
        "内置世界的场景，每族成员只差一个属性。R@1 为百分数：在新的一族之内（随机猜测 {chance:.1f}），以及在 1000 个无关场景中；"
        "差值是与同样本量的普通继续训练相比的百分点，{n} 个种子，95 % 区间。",
    ),
    "mining": ("Mining hard pairs", "挖掘困难样本对"),
    "mining_note": (
        "{dims} image and {dims} caption dimensions, k = {k}, {threads} threads. `ann` is measured on all pairs; everything "
        "else is timed on {queries} queries against all pairs and extrapolated. Memory: above the process before.",
        "图像与描述各 {dims} 维，k = {k}，{threads} 线程。`ann` 为全部实测；"
        "其余以 {queries} 个查询对全部样本计时后外推。内存：超出进程原有的部分。",
    ),
    "continuation": ("continued with", "继续训练的方式"),
    "trained_on": ("trained emoji", "训练过的"),
    "held_out": ("held-out concepts", "未见过的概念"),
    "within": ("within the family", "族内"),
    "unrelated": ("among unrelated scenes", "无关场景中"),
    "beside": ("difference", "差值"),
    "active": ("margin active", "间隔起作用的比例"),
    "base": ("nothing (the base)", "不继续（底模）"),
    "untrained": ("nothing (the base)", "不继续（底模）"),
    "plain": ("plain batches", "普通批次"),
    "continued": ("plain batches", "普通批次"),
    "random": ("random partners", "随机搭配"),
    "hpm": ("one hard pair a seed", "每个种子配一个困难样本对"),
    "hnml": ("the margin loss alone", "只用间隔损失"),
    "helip": ("one hard pair a seed and the margin loss (HELIP)", "每个种子配一个困难样本对，加间隔损失（HELIP）"),
    "helip_both": ("HELIP, the margin both ways", "HELIP，间隔双向"),
    "hpm-harder": ("seven hard pairs a seed", "每个种子配七个困难样本对"),
    "helip-harder": ("seven hard pairs a seed and the margin loss", "每个种子配七个困难样本对，加间隔损失"),
    "random+hnml": ("random partners and the margin loss", "随机搭配加间隔损失"),
    "random_margin": ("random partners and the margin loss", "随机搭配加间隔损失"),
    "num_pairs": ("pairs", "样本对"),
    "pairs_a_second": ("pairs a second", "每秒样本对"),
    "speedup": ("times exact", "相对 exact"),
    "recall_at_k": ("recall", "召回率"),
    "memory_mb": ("memory, MB", "内存（MB）"),
}
"""Headers and row labels: English, Chinese."""


@dataclass(frozen=True, slots=True)
class Table:
    """Header and rows of one table, and the sentence below its title."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


class Say:
    """The catalogue in one language."""

    def __init__(self, language: Language) -> None:
        self.language = language

    def __call__(self, key: str, **values: Any) -> str:
        """Return a text of the catalogue."""
        text = WORDS[key][0 if self.language == "en" else 1]
        return text.format(**values) if values else text


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tables, or with ``--check`` say which README is out of date; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m huaben.bench.tables", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a README is out of date")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2], help="the repository")
    arguments = parser.parse_args(argv)
    try:
        stale = stale_readmes(arguments.root)
        for path, text in stale.items():
            if not arguments.check:
                write_bytes(path, text.encode("utf-8"))
            sys.stderr.write(f"{path.name} {'is out of date' if arguments.check else 'written'}\n")
    except HuabenError as error:
        sys.stderr.write(f"error: {error.message}\nhint: {error.hint}\n")
        return 1
    if stale and arguments.check:
        sys.stderr.write("hint: run python -m huaben.bench.tables\n")
        return 1
    return 0


def stale_readmes(root: Path) -> dict[Path, str]:
    """Return the READMEs whose tables are not those of the results, each with the text it should have.

    Raises:
        DataError: for a missing README, results that cannot be read, or a table without a place.
    """
    records = read_results(root / "experiments")
    stale = {}
    for name, language in READMES.items():
        path = root / name
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}", hint="name the repository with --root") from error
        wanted = fill(text, records, language, name)
        if wanted != text:
            stale[path] = wanted
    return stale


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return every experiment's record by name.

    Raises:
        DataError: for a file that is not a record.
    """
    records = {}
    for path in sorted(folder.glob("*/results.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is not valid JSON: {error}", hint="run the measurement again") from error
        if not isinstance(record, dict) or not isinstance(record.get("results"), dict):
            raise DataError(f"{path} has no results", hint="write it with huaben bench")
        records[path.parent.name] = record
    return records


def fill(text: str, records: Mapping[str, dict[str, Any]], language: Language, where: str = "the text") -> str:
    """Return ``text`` with every marked place filled from the records.

    Raises:
        DataError: if a table has no place, a place no end, or its name is unknown.
    """
    places = [match["name"] for match in BLOCK.finditer(text)]
    opened = re.findall(r"<!-- results:([\w-]+) -->", text)
    known = {*TABLES, HARDWARE}
    if places != opened or text.count("<!-- /results -->") != len(opened):
        raise DataError(
            f"the marks of {where} do not pair: {', '.join(opened) or 'none'}", hint="end each with <!-- /results -->"
        )
    if wrong := [name for name in places if name not in known]:
        raise DataError(
            f"{where} has a place for {wrong[0]!r}", hint=f"there are tables for {', '.join(sorted(known))}"
        )
    if homeless := [name for name in TABLES if name in records and name not in places]:
        raise DataError(
            f"{where} has no place for the results of {', '.join(homeless)}",
            hint=f"add <!-- results:{homeless[0]} --> and <!-- /results -->",
        )
    say = Say(language)

    def body(match: re.Match[str]) -> str:
        name = match["name"]
        if name == HARDWARE:
            lines = hardware_lines({key: records[key] for key in TABLES if key in records}, say)
        else:
            lines = table_lines(name, records[name], say) if name in records else []
        return f"{match[1]}{''.join(line + chr(10) for line in lines)}{match[4]}"

    return BLOCK.sub(body, text)


def table_lines(name: str, record: Mapping[str, Any], say: Say) -> list[str]:
    """Return a table as lines of Markdown; rows and columns without a single number are left out."""
    table = TABLES[name](record["results"], say)
    rows = [row for row in table.rows if any(cell is not None for cell in row[1:])]
    if not rows:
        return []
    used = [0, *(i for i in range(1, len(table.header)) if any(row[i] is not None for row in rows))]
    lines = [[table.header[i] for i in used], ["---"] * len(used)]
    lines += [[row[i] or ABSENT for i in used] for row in rows]
    return [
        f"**{say(name)}** ([{say('raw')}](experiments/{name}/results.json))",
        "",
        *([table.note, ""] if table.note else []),
        *("| " + " | ".join(cells) + " |" for cells in lines),
    ]


def hardware_lines(records: Mapping[str, dict[str, Any]], say: Say) -> list[str]:
    """Return one sentence per machine the numbers come from."""
    machines: dict[str, list[str]] = {}
    for name, record in records.items():
        found, versions = record.get("hardware") or {}, record.get("versions") or {}
        parts = [
            str(found.get("cpu") or found.get("machine") or "?"),
            say("cpus", cpus=found.get("cpus", "?")),
            str(found.get("gpu") or say("no_gpu")),
            f"Python {versions.get('python', '?')}",
            f"torch {versions.get('torch', '?')}",
        ]
        machines.setdefault(", ".join(parts), []).append(name)
    return [say("measured_on", machine=machine, names=", ".join(names)) for machine, names in machines.items()]


# ------------------------------------------------------------------------------------------------------------- cells


def dig(values: Any, *path: str) -> Any:
    """Return what is at a path of nested dicts, or None."""
    for key in path:
        if not isinstance(values, Mapping) or key not in values:
            return None
        values = values[key]
    return values


def share(value: Any) -> Cell:
    """Return a share in per cent with its interval."""
    return _with_interval(value, lambda number: f"{100 * number:.1f}", " %")


def amount(value: Any, digits: int = 2) -> Cell:
    """Return a mean with its interval."""
    return _with_interval(value, lambda number: f"{number:.{digits}f}", "")


def count(value: Any) -> Cell:
    """Return the n of a value."""
    found = dig(value, "n")
    return None if found is None else str(found)


def between(value: Any, digits: int = 2, unit: str = "") -> Cell:
    """Return a median (or mean) with the lowest and highest measurement."""
    middle = dig(value, "median") if dig(value, "median") is not None else dig(value, "mean")
    if middle is None:
        return None
    return f"{middle:.{digits}f}{unit} ({value['low']:.{digits}f} – {value['high']:.{digits}f})"


def _with_interval(value: Any, write: Callable[[float], str], unit: str) -> Cell:
    """Return a number, or a mean with the interval beside it, whichever way that is stored."""
    if isinstance(value, (int, float)):
        return write(value) + unit
    mean = dig(value, "mean")
    if mean is None:
        return None
    low, high = value["interval"] if "interval" in value else (value.get("low"), value.get("high"))
    return write(mean) + unit + ("" if low is None or high is None else f" [{write(low)}, {write(high)}]")


# ------------------------------------------------------------------------------------------------------------ tables


def detector_table(results: Mapping[str, Any], say: Say) -> Table:
    """Clean, blurred and noisy pictures, and guessing."""
    rows: list[list[Cell]] = []
    for name in ("clean", "blur 1", "blur 2", "noise 0.05", "noise 0.1"):
        read, known = dig(results, "reading", name), dig(results, "recognition", name, "top1")
        numbers = [count(dig(read, "recognised")), count(known)]
        rows.append(
            [
                say(name),
                share(dig(read, "recognised")),
                share(dig(read, "accessory")),
                amount(dig(read, "box_iou"), 3),
                share(known),
                " / ".join(number or ABSENT for number in numbers) if any(numbers) else None,
            ]
        )
    guess = dig(results, "chance") or {}
    rows.append(
        [
            say("chance"),
            share(guess.get("recognised")),
            share(guess.get("accessory")),
            None,
            share(guess.get("top1")),
            None,
        ]
    )
    header = [say(key) for key in ("condition", "species_colour", "accessory", "box_iou", "identity", "n_detector")]
    return Table(header, rows, say("detector_note"))


def painter_table(results: Mapping[str, Any], say: Say) -> Table:
    """By number of characters, language, held-out part and without boxes; beside it the same scenes drawn exactly."""
    measures = ("recognised", "placed", "right", "whole_picture")
    rows: list[list[Cell]] = []
    for label in (
        "sketched_1", "sketched_2", "sketched_3", "sketched_en", "sketched_zh", "sketched_composition_all",
        "sketched_paraphrase_all", "fresh_1", "fresh_2", "fresh_3", "composition_all", "paraphrase_all", "text_only_all",
        "fresh_renderer",
    ):  # fmt: skip
        arm, _, group = label.rpartition("_")
        part = dig(results, arm, group)
        rows.append([say(label), *(share(dig(part, name)) for name in measures), count(dig(part, "recognised"))])
    header = [say(key) for key in ("prompts", "species_colour", "placed", "right", "whole_picture", "pictures")]
    return Table(header, rows, say("painter_note"))


def story_table(results: Mapping[str, Any], say: Say) -> Table:
    """With references, without, drawn exactly, and guessing."""
    rows: list[list[Cell]] = [
        [
            say(arm),
            share(dig(results, arm, "right")),
            share(dig(results, arm, "recognised")),
            amount(dig(results, arm, "similarity")),
            count(dig(results, arm, "right")),
        ]
        for arm in ("reference", "baseline")
    ]
    rows.append([say("gain"), share(dig(results, "gain")), None, None, count(dig(results, "gain"))])
    drawn = dig(results, "renderer")
    rows.append(
        [
            say("renderer"),
            share(dig(drawn, "right")),
            share(dig(drawn, "recognised")),
            amount(dig(drawn, "similarity")),
            count(dig(drawn, "right")),
        ]
    )
    rows.append([say("chance"), share(dig(results, "chance")), None, None, None])
    header = [say(key) for key in ("arm", "right_individual", "recognised", "similarity", "stories")]
    return Table(header, rows, say("story_note"))


def conversations_table(results: Mapping[str, Any], say: Say) -> Table:
    """The scripts that the grammar was tuned on, and those it was not."""
    rows: list[list[Cell]] = []
    for name in ("batch_1", "batch_2"):
        part = dig(results, name)
        number = dig(part, "scripts")
        rows.append(
            [
                say(name),
                share(dig(part, "pages")),
                share(dig(part, "turns")),
                share(dig(part, "conversations")),
                None if number is None else str(number),
            ]
        )
    header = [say("scripts"), say("pages"), say("turns"), say("whole"), "n"]
    return Table(header, rows, say("conversations_note"))


def draw_speed_table(results: Mapping[str, Any], say: Say) -> Table:
    """Warm with one and two threads, and the command from a cold start."""
    rows: list[list[Cell]] = []
    for threads, parts in sorted((dig(results, "warm") or {}).items(), key=lambda item: -int(item[0])):
        label = say("thread") if threads == "1" else say("threads", count=threads)
        cells = [between(dig(parts, part), 3) for part in ("total", "text", "sampling", "decode")]
        rows.append([label, *cells, None, count(dig(parts, "total"))])
    cold = dig(results, "cold") or {}
    memory = between(cold.get("peak_memory_mb"), 0, " MB")
    if cold:
        label = say("cold", command=f"`{cold.get('command', 'huaben draw')}`")
        rows.append([label, between(cold.get("seconds")), None, None, None, memory, count(cold.get("seconds"))])
        alone = cold.get("import_torch_s")
        rows.append([say("import_torch"), between(alone), None, None, None, None, count(alone)])
    header = [say(key) for key in ("way", "total", "text", "sampling", "decode", "memory", "repeats")]
    note = say("draw_speed_note", size=results.get("size", "?"), steps=results.get("steps", "?"))
    return Table(header, rows, note)


def dit_speed_table(results: Mapping[str, Any], say: Say) -> Table:
    """Ours and diffusers', a row per number of image tokens."""
    rows: list[list[Cell]] = []
    for case in results.get("cases", []):
        difference = case.get("max_difference")
        rows.append(
            [
                f"{case['tokens']} ({case['grid'][0]} × {case['grid'][1]})",
                between(_several(case.get("huaben_s"))),
                between(_several(case.get("diffusers_s"))),
                between(_several(case.get("ratios")), unit=" ×"),
                None if difference is None else f"{difference:.1e}",
                str(len(case["huaben_s"])),
            ]
        )
    header = [say(key) for key in ("tokens", "ours", "theirs", "ratio", "difference", "repeats")]
    note = say(
        "dit_speed_note",
        steps=results.get("steps", "?"),
        parameters=round(results.get("parameters", 0) / 1e6),
        dtype=results.get("dtype", "?"),
        threads=results.get("threads", "?"),
    )
    return Table(header, rows, note)


def world_speed_table(results: Mapping[str, Any], say: Say) -> Table:
    """Drawing, with masks, inventing scenes, and both."""
    rows: list[list[Cell]] = []
    for name in ("render", "render_with_masks", "sample", "sample_and_render"):
        rate = dig(results, "scenes", name, "per_cpu_second")
        rows.append([say(name), between(rate, 0), count(rate)])
    note = say("world_speed_note", size=results.get("size", "?"))
    return Table([say(key) for key in ("work", "per_second", "repeats")], rows, note)


def extrapolation_table(results: Mapping[str, Any], say: Say) -> Table:
    """Return one row per position scheme, one column per length."""
    lengths = [str(length) for length in results.get("lengths", [])]
    rows = [
        [
            f"`{name}`",
            *(amount(dig(entry, "lengths", length, "perplexity")) for length in lengths),
            str(len(entry.get("seeds", []))),
        ]
        for name, entry in results.get("schemes", {}).items()
    ]
    facts = {key: results.get(key, "?") for key in ("shared", "steps", "train_length")}
    header = [say("positions"), *(say("context", length=length) for length in lengths), say("seeds")]
    return Table(header, rows, say("extrapolation_note", **facts))


def recall_table(results: Mapping[str, Any], say: Say) -> Table:
    """Return one row per position scheme."""
    rows = [
        [f"`{name}`", share(entry["accuracy"]), count(entry["accuracy"])]
        for name, entry in results.get("schemes", {}).items()
    ]
    return Table([say("positions"), say("accuracy"), say("seeds")], rows, say("recall_note"))


def transfer_table(results: Mapping[str, Any], say: Say) -> Table:
    """Return one row per method, the best first."""
    budgets = ("10", "20", "30")
    methods = sorted(results.get("methods", {}).items(), key=lambda item: item[1]["percent"]["mean"])
    rows: list[list[Cell]] = [
        [
            f"`{name}`",
            *(f"{entry['curve'][size]:.2f}" if size in entry["curve"] else None for size in budgets),
            amount(entry["percent"]),
            f"{entry['median']:.2f}",
            f"{entry['worst_task']['mean']:.2f}",
            f"{entry['cpu_seconds']:.1f}",
            str(entry["seeds"]),
        ]
        for name, entry in methods
    ]
    limit = dig(results, "noise_limit", "mean_percent")
    if limit is not None:
        rows.append([say("noise"), None, None, None, f"{limit:.2f}", None, None, None, None])
    published = dig(results, "published", "average_percent")
    if published:
        rows.append([say("published"), None, None, None, f"{published[0]:.2f}", None, None, None, None])
    header = [
        say("method"),
        *(say("after", budget=size) for size in budgets),
        say("after", budget=results.get("budget", 50)),
        say("median"),
        say("worst_task"),
        say("cpu"),
        say("seeds"),
    ]
    return Table(header, rows, say("transfer_note", rows=results.get("rows", "?")))


ARMS = (
    *("base", "untrained", "plain", "continued", "random", "random+hnml", "random_margin", "hnml"),
    *("hpm", "helip", "helip_both", "hpm-harder", "helip-harder"),
)
"""Ways to continue training, in the order of the rows."""


def hard_pairs_emoji_table(results: Mapping[str, Any], say: Say) -> Table:
    """Return one row per arm: trained and held-out emoji."""
    rows: list[list[Cell]] = []
    pairs = 0
    arms = results.get("arms", {})
    for name, arm in ((name, arms[name]) for name in ARMS if dig(arms, name, "n")):
        cells: list[Cell] = [say(name)]
        for pool in ("seen", "held"):
            cells += [f"{arm['scores'][pool]['r1']:.1f}", _difference(dig(arm, "difference", f"{pool}.r1"), name)]
        active = dig(arm, "terms", "margin_active")
        rows.append([*cells, None if active is None else f"{100 * active:.1f} %"])
        pairs = max(pairs, arm["n"])
    header = [say("continuation"), say("trained_on"), say("beside"), say("held_out"), say("beside"), say("active")]
    return Table(header, rows, say("hard_pairs_emoji_note", n=pairs, seen=dig(results, "data", "seen")))


def hard_pairs_world_table(results: Mapping[str, Any], say: Say) -> Table:
    """Return one row per arm: near-identical scenes and unrelated ones."""
    rows: list[list[Cell]] = []
    arms = results.get("arms", {})
    for name, arm in ((name, arms[name]) for name in ARMS if name in arms):
        cells: list[Cell] = [say(name)]
        for key in ("family", "global"):
            difference = dig(results, "differences", f"{name} - continued", key)
            cells += [f"{arm['scores'][key]['mean']:.1f}", _difference(difference, name)]
        active = dig(arm, "terms", "margin_active")
        rows.append([*cells, None if active is None else f"{100 * active:.1f} %"])
    header = [say("continuation"), say("within"), say("beside"), say("unrelated"), say("beside"), say("active")]
    note = say("hard_pairs_world_note", chance=results.get("chance", 0.0), n=len(results.get("seeds", ())))
    return Table(header, rows, note)


def _difference(value: Any, arm: str) -> Cell:
    """Return a signed mean with its interval; nothing for the arm that the others are compared with."""
    if arm in ("plain", "continued") or dig(value, "mean") is None:
        return None
    return f"{value['mean']:+.2f} [{value['low']:+.2f}, {value['high']:+.2f}]"


def mining_table(results: Mapping[str, Any], say: Say) -> Table:
    """Return one row per number of pairs and method."""
    rows: list[list[Cell]] = []
    for case in results.get("cases", ()):
        for name, found in case["methods"].items():
            if "pairs_per_s" not in found:
                continue
            times = found.get("speedup")
            rows.append(
                [
                    f"{case['pairs']:,}",
                    f"`{name}`",
                    f"{found['pairs_per_s']:,.0f}",
                    None if times is None else f"{times:.1f}",
                    f"{found['recall']:.3f}",
                    None if found.get("grown_mb") is None else f"{found['grown_mb']:,.0f}",
                ]
            )
    header = [
        say("num_pairs"),
        say("method"),
        say("pairs_a_second"),
        say("speedup"),
        say("recall_at_k"),
        say("memory_mb"),
    ]
    values = {"dims": "?", "k": "?", "threads": "?", "queries": "?", **results.get("settings", {})}
    return Table(
        header, rows, say("mining_note", **{name: values[name] for name in ("dims", "k", "threads", "queries")})
    )


def _several(values: Sequence[float] | None) -> dict[str, float] | None:
    """Return median, lowest and highest of some measurements."""
    if not values:
        return None
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


TABLES: dict[str, Callable[[Mapping[str, Any], Say], Table]] = {
    "detector": detector_table,
    "painter": painter_table,
    "story": story_table,
    "conversations": conversations_table,
    "draw_speed": draw_speed_table,
    "dit_speed": dit_speed_table,
    "world_speed": world_speed_table,
    "extrapolation": extrapolation_table,
    "recall": recall_table,
    "transfer": transfer_table,
    "hard_pairs_emoji": hard_pairs_emoji_table,
    "hard_pairs_world": hard_pairs_world_table,
    "mining": mining_table,
}
"""Experiment -> its table, in the order of the README."""

if __name__ == "__main__":
    raise SystemExit(main())
