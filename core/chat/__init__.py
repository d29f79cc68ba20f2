"""Conversations: their messages, their cache and their files.

Rendering prompts is in ``core.text``, generating in ``core.language_model``.
"""

from core.chat.conversation import Conversation
from core.chat.messages import checked_messages, checked_tools
from core.chat.plain import PLAIN_TEMPLATE
from core.chat.storage import StoredConversation, read_conversation, write_conversation

__all__ = [
    "Conversation",
    "PLAIN_TEMPLATE",
    "StoredConversation",
    "checked_messages",
    "checked_tools",
    "read_conversation",
    "write_conversation",
]
