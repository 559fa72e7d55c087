"""The command line's own words, in English and Chinese; both catalogues have the same keys."""

from __future__ import annotations

import os
from typing import Literal

from ..errors import UsageError

Language = Literal["en", "zh"]

WORDS: dict[str, dict[str, str]] = {
    "en": {
        "about": "A bilingual studio that turns a conversation into pictures.",
        "bench": "Measure a claim: one results file and one picture or table.",
        "broken": "found, but does not load",
        "chat": "Make a picture story by talking; or play a script of messages.",
        "debug": "Show the traceback of an error.",
        "disk": "free disk",
        "doctor": "Show what this machine and installation can do, and what to repair.",
        "draw": "Draw one picture from a description, in English or Chinese.",
        "error": "error",
        "fonts": "Chinese font",
        "hint": "hint",
        "interrupted": "interrupted",
        "json": "Print one JSON object on stdout.",
        "lang": "Language of these messages: en or zh (also HUABEN_LANG).",
        "mcp": "Offer the studio to assistants by the Model Context Protocol.",
        "memory": "memory",
        "missing": "not installed",
        "none": "none",
        "packages": "optional packages",
        "platform": "machine",
        "problems": "What to repair",
        "studio": "Open the studio: a page in the browser, and an API, on one port.",
        "terminal": "terminal",
        "threads": "torch threads",
        "train": "Train one of the embedded models; resumable.",
        "clip": "CLIP models: mine hard pairs, improve by them, judge.",
        "lm": "Language models: train any position scheme, score longer contexts, continue a text.",
        "nas": "Architecture search: propose, evaluate and rank within a budget.",
        "train_device": "auto, cpu or cuda.",
        "train_list": "What can be trained:",
        "train_minutes": "Length by time, in minutes; the recipe's own if neither is given.",
        "train_name": "What to train; leave it out to see the names.",
        "train_out": "Folder of the run. [default: runs/NAME]",
        "train_resume": "Go on from the folder's checkpoint, if there is one.",
        "train_seed": "Seed of weights and data.",
        "train_steps": "Length by steps.",
        "train_threads": "Threads of torch.",
        "train_workers": "Processes that make batches ahead.",
        "trained": "{name}: {steps} steps in {minutes:.1f} minutes, saved in {folder}",
        "unexpected": "unexpected {kind}: {text}",
        "use_debug": "run it again with --debug to see where, and report it",
        "version": "Show the version.",
        "weights": "embedded models",
        "well": "Everything needed is in order.",
        "world": "The embedded world: render pictures, read them back.",
    },
    "zh": {
        "about": "用对话画图的双语工作室。",
        "bench": "检验一项主张：一份结果文件，一张图或表。",
        "broken": "已安装，但无法加载",
        "chat": "边聊边画故事，或播放一份消息脚本。",
        "debug": "出错时显示完整的调用栈。",
        "disk": "可用磁盘",
        "doctor": "查看这台机器和这次安装能做什么、该修什么。",
        "draw": "用中文或英文描述画一张图。",
        "error": "错误",
        "fonts": "中文字体",
        "hint": "建议",
        "interrupted": "已中断",
        "json": "在标准输出打印一个 JSON 对象。",
        "lang": "这些提示的语言：en 或 zh（也可用 HUABEN_LANG）。",
        "mcp": "通过 MCP 协议把工作室提供给各种助手。",
        "memory": "内存",
        "missing": "未安装",
        "none": "无",
        "packages": "可选软件包",
        "platform": "机器",
        "problems": "需要修复",
        "studio": "打开工作室：浏览器页面和 API，同一个端口。",
        "terminal": "终端",
        "threads": "torch 线程",
        "train": "训练一个内置模型，可断点续训。",
        "clip": "CLIP 模型：挖掘困难样本对，用它们改进，评测。",
        "lm": "语言模型：用任意位置方案训练，测量更长的上下文，续写文本。",
        "nas": "架构搜索：在预算内提出、评估并排序架构。",
        "train_device": "auto、cpu 或 cuda。",
        "train_list": "可以训练：",
        "train_minutes": "按时间定长度（分钟）；都不给则用配方自己的长度。",
        "train_name": "训练哪一个；不写则列出名字。",
        "train_out": "运行目录。[默认：runs/NAME]",
        "train_resume": "目录里有检查点就接着训练。",
        "train_seed": "权重和数据的种子。",
        "train_steps": "按步数定长度。",
        "train_threads": "torch 的线程数。",
        "train_workers": "提前准备批次的进程数。",
        "trained": "{name}：{steps} 步，{minutes:.1f} 分钟，保存在 {folder}",
        "unexpected": "意外的 {kind}：{text}",
        "use_debug": "加上 --debug 再运行一次可看到出错位置，并请反馈",
        "version": "显示版本。",
        "weights": "内置模型",
        "well": "需要的都已就绪。",
        "world": "内置世界：渲染图画，再读回来。",
    },
}

_language: Language = "en"


def choose_language(asked: str | None) -> None:
    """Set the language of every later :func:`say`: as asked, else HUABEN_LANG, else English.

    Raises:
        UsageError: for another language.
    """
    global _language
    name = asked or os.environ.get("HUABEN_LANG") or "en"
    if name not in WORDS:
        where = "--lang" if asked else "HUABEN_LANG"
        raise UsageError(f"{where} is {name!r}, expected en or zh", hint="use --lang en or --lang zh")
    _language = "zh" if name == "zh" else "en"


def language() -> Language:
    """Return the language chosen."""
    return _language


def say(key: str, **values: object) -> str:
    """Return one entry of the catalogue in the language chosen."""
    text = WORDS[_language][key]
    return text.format(**values) if values else text
