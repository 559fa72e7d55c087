"""The embedded world as a stage: messages about it become replies, edits and pages. No torch."""

from .layout import Wish, layout_characters, page_to_scene, scene_to_page
from .screenwriter import Screenwriter
from .words import describe, people

__all__ = [
    "Screenwriter",
    "Wish",
    "describe",
    "layout_characters",
    "page_to_scene",
    "people",
    "scene_to_page",
]
