"""What was meant, and what to answer: messages become replies, edits and pages. No torch."""

from .grammar import detect_language
from .message import (
    MAX_MESSAGE_LENGTH,
    Action,
    Conversation,
    Memory,
    Message,
    Pending,
    Reply,
    Turn,
    clean_text,
)
from .screenwriter import Screenwriter
from .stage import Wish, layout_characters, page_to_scene, scene_to_page
from .words import describe, people

__all__ = [
    "MAX_MESSAGE_LENGTH",
    "Action",
    "Conversation",
    "Memory",
    "Message",
    "Pending",
    "Reply",
    "Screenwriter",
    "Turn",
    "Wish",
    "clean_text",
    "describe",
    "detect_language",
    "layout_characters",
    "page_to_scene",
    "people",
    "scene_to_page",
]
