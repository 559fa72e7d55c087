"""What was meant, and what to answer: messages become replies, edits and pages. No torch, and no world."""

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
    detect_language,
)

__all__ = [
    "MAX_MESSAGE_LENGTH",
    "Action",
    "Conversation",
    "Memory",
    "Message",
    "Pending",
    "Reply",
    "Turn",
    "clean_text",
    "detect_language",
]
