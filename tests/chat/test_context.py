"""What is left out of a full context: whole turns, the oldest first, and as few and as seldom as the policy says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.chat.context import first_sent, fitted, reserved
from core.chat.messages import turns
from core.errors import ConversationError

SYSTEM = 10

TURNS = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=3), min_size=1, max_size=12)


def conversation(lengths: list[list[int]]) -> list[dict[str, Any]]:
    """Turns of a user's message and what answers it, each as long as its number."""
    roles = ["user", "assistant", "tool"]
    return [
        {"role": role, "content": "x" * length} for turn in lengths for role, length in zip(roles, turn, strict=False)
    ]


def count_of(messages: list[dict[str, Any]]) -> Any:
    return lambda start: SYSTEM + sum(len(message["content"]) for message in messages[start:])


@given(TURNS, st.integers(20, 300), st.integers(1, 200))
def test_oldest_turns_go_until_half_is_free(lengths: list[list[int]], context: int, wanted: int) -> None:
    messages = conversation(lengths)
    count = count_of(messages)
    room = reserved(wanted, context)
    last = turns(messages)[-1]
    try:
        start = first_sent(messages, 0, count, context=context, room=room, policy="drop-oldest")
    except ConversationError:
        assert count(last) > context - room  # not even the last turn fits
        return
    assert count(start) <= context - room
    if start:
        assert messages[start]["role"] == "user"
        assert count(0) > context - room  # it was needed
        assert start == last or count(start) <= (context - room) // 2
        before = max(place for place in turns(messages) if place < start)
        assert before == 0 or count(before) > (context - room) // 2  # and no more than needed


@given(TURNS, st.integers(20, 300))
def test_what_was_left_out_stays_out(lengths: list[list[int]], context: int) -> None:
    """As a conversation grows turn by turn, the beginning of what is sent moves forward only."""
    messages = conversation(lengths)
    begins = [*turns(messages)[1:], len(messages)]
    since = 0
    for end in begins:
        part = messages[:end]
        try:
            start = first_sent(part, since, count_of(part), context=context, room=5, policy="drop-oldest")
        except ConversationError:
            return
        assert start >= since
        since = start


@pytest.mark.parametrize("number", [50, 500, 5000])
def test_a_long_conversation_is_rendered_once_and_then_no_more_than_what_fits(number: int) -> None:
    messages = conversation([[3, 7]] * number)
    rendered: list[int] = []

    def encode(part: Any) -> list[int]:
        rendered.append(len(part))
        return [0] * sum(len(message["content"]) for message in part)

    first, ids = fitted(messages, 0, encode, max_tokens=20, context=220, policy="drop-oldest")
    assert (first, len(ids)) == (2 * number - 20, 100)  # half of what the answer leaves free, in turns of 10
    whole, *ends = rendered
    assert whole == 2 * number
    assert sum(ends) <= 8 * 20


def test_stop() -> None:
    messages = conversation([[40, 40], [40]])
    count = count_of(messages)
    assert first_sent(messages, 0, count, context=140, room=10, policy="stop") == 0
    with pytest.raises(ConversationError, match="expected at most 119 tokens, and 10 for the answer, found 130"):
        first_sent(messages, 0, count, context=129, room=10, policy="stop")


@pytest.mark.parametrize(("wanted", "context", "room"), [(10, 1000, 10), (900, 1000, 250), (0, 1000, 1), (5, 3, 1)])
def test_room_for_an_answer(wanted: int, context: int, room: int) -> None:
    assert reserved(wanted, context) == room


def test_turns_begin_with_users() -> None:
    roles = ["assistant", "user", "assistant", "tool", "assistant", "user", "user"]
    assert turns([{"role": role} for role in roles]) == [0, 5, 6]
    assert turns([]) == []
    assert turns([{"role": "assistant"}]) == [0]
