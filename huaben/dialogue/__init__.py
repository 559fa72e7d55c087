"""What was meant, and what to answer: messages become replies, edits and pages. No torch, and no world."""

from .chat import ChatMessage, ChatModel
from .message import (
    MAX_MESSAGE_LENGTH,
    Action,
    Conversation,
    Exchange,
    Memory,
    Message,
    Pending,
    Reply,
    Screenwriter,
    clean_text,
    detect_language,
)

__all__ = [
    "MAX_MESSAGE_LENGTH",
    "Action",
    "ChatMessage",
    "ChatModel",
    "Conversation",
    "Exchange",
    "Memory",
    "Message",
    "Pending",
    "Reply",
    "Screenwriter",
    "clean_text",
    "detect_language",
]
