"""Chooses which messages are sent to the model when a conversation no longer fits its context. Two policies:

* ``drop-oldest``: the oldest turns are left out, each with its question and all answers. The system prompt and the last
  turn always stay. So many are left out that half of the context is free: the rest is processed again only once, and
  not for every following turn.
* ``stop``: an error says that the conversation is full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

from core.chat.messages import Message, turns
from core.errors import ConversationError, UsageError

ContextPolicy = Literal["drop-oldest", "stop"]
POLICIES: tuple[str, ...] = get_args(ContextPolicy)


def usable(given: int | None, made_for: int | None) -> int | None:
    """Tokens that a prompt and its answer may have together; None if no limit is known.

    Args:
        given: the user's limit; None takes the model's.
        made_for: the model's context.

    Raises:
        UsageError: there is no room for a prompt and an answer.
    """
    if given is None:
        return made_for
    if given < 8:
        raise UsageError("a context has room for a prompt and an answer", expected="8 tokens or more", found=given)
    return given if made_for is None else min(given, made_for)


def reserved(max_tokens: int, context: int) -> int:
    """Tokens of a context that are kept free for an answer: ``max_tokens``, but at most a quarter."""
    return max(1, min(max_tokens, context // 4))


def fitted(
    messages: Sequence[Message],
    since: int,
    encode: Callable[[Sequence[Message]], list[int]],
    *,
    max_tokens: int,
    context: int | None,
    policy: str,
) -> tuple[int, list[int]]:
    """The prompt of the messages that fit the context together with the answer, and the index of the first of them.

    Args:
        messages: without the system prompt.
        since: the index returned last time; nothing before it is sent again.
        encode: from messages to the prompt's ids.
        max_tokens: of the answer.
        context: None if no limit is known: all messages are sent.

    The other arguments, and errors, are those of ``first_sent``.
    """
    if context is None:
        return since, encode(messages)
    made: dict[int, list[int]] = {}

    def count(start: int) -> int:
        made[start] = encode(messages[start:])
        return len(made[start])

    room = reserved(max_tokens, context)
    first = first_sent(messages, since, count, context=context, room=room, policy=policy)
    return first, made[first]


def first_sent(
    messages: Sequence[Message],
    since: int,
    count: Callable[[int], int],
    *,
    context: int,
    room: int,
    policy: str,
) -> int:
    """The index of the first message that is sent to the model.

    Args:
        messages: without the system prompt.
        since: the index returned last time; nothing before it is sent again.
        count: tokens of the prompt that begins at this message.
        context: tokens that the model can process, prompt and answer together.
        room: of these, tokens for the answer.
        policy: one of ``POLICIES``.

    Raises:
        ConversationError: the policy is ``stop`` and the prompt does not fit, or not even its last turn does.
    """
    tokens = count(since)
    if tokens <= context - room:
        return since
    if policy == "stop":
        raise ConversationError(
            "the conversation is longer than the model's context",
            expected=f"at most {context - room:,} tokens, and {room:,} for the answer",
            found=f"{tokens:,} tokens",
            hint="Start a new one, undo a turn, or let the oldest turns be left out (drop-oldest).",
        )
    later = [place for place in turns(messages) if place > since]
    if later:
        tokens = count(later[-1])
        if tokens <= (context - room) // 2:
            return _longest_end(later, count, (context - room) // 2)
        if tokens <= context - room:
            return later[-1]
    raise ConversationError(
        "the last message and the system prompt are longer than the model's context",
        expected=f"at most {context - room:,} tokens, and {room:,} for the answer",
        found=f"{tokens:,} tokens",
        hint="Send less at once.",
    )


def _longest_end(starts: Sequence[int], count: Callable[[int], int], most: int) -> int:
    """The first of ``starts`` from which the prompt has at most ``most`` tokens. The prompt from the last start must
    fit.

    It searches from the end, in steps that double, and then between the last two. So it counts little more than what
    fits, however long the conversation is.
    """
    fits, step = len(starts) - 1, 1
    while step <= fits and count(starts[fits - step]) <= most:
        fits, step = fits - step, step * 2
    too_early = max(fits - step, -1)
    while fits - too_early > 1:
        middle = (too_early + fits) // 2
        if count(starts[middle]) > most:
            too_early = middle
        else:
            fits = middle
    return starts[fits]


def checked_policy(policy: str) -> str:
    """The policy, if there is one of this name.

    Raises:
        UsageError: there is none.
    """
    if policy not in POLICIES:
        raise UsageError("no context policy has this name", expected=", ".join(POLICIES), found=repr(policy))
    return policy
