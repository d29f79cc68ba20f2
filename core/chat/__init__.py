"""Conversations: messages, their cache and their files. Knows no terminal and no server.

Rendering is ``core.text``'s, generating ``core.language_model``'s; here is what stays between one answer and the next.
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
