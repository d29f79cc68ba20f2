"""``AnswerText``: the text of an answer as it is generated, without tool calls."""

from __future__ import annotations

from core.chat.messages import problem_within
from core.text.tool_calls import TOOL_CALLS, ToolCalls, Vocabulary, parse_tool_calls


class AnswerText:
    """The part of a generated text that the reader sees.

    Text after the control token of a tool call is held back. It is released if it turns out not to be a call.

    Args:
        tokenizer: of the model.
        turn: as for ``parse_tool_calls``.
    """

    def __init__(self, tokenizer: Vocabulary, turn: int) -> None:
        self._tokenizer, self._turn = tokenizer, turn
        self._ids: list[int] = []
        self._shown: list[str] = []
        self._held: list[str] = []
        self._calls = False

    @property
    def ids(self) -> list[int]:
        """The ids so far."""
        return list(self._ids)

    @property
    def shown(self) -> str:
        """The text released so far."""
        return "".join(self._shown)

    def add(self, text: str, token_id: int | None) -> str:
        """Adds the next piece; returns the part that the reader sees."""
        if token_id is not None:
            self._ids.append(token_id)
            if token_id in self._tokenizer.special_ids and self._tokenizer.token_of(token_id) == TOOL_CALLS:
                self._calls = True
        (self._held if self._calls else self._shown).append(text)
        return "" if self._calls else text

    def finish(self) -> tuple[str, ToolCalls]:
        """Returns the text released at the end, and the calls. Held-back text that is a call is not released."""
        if not self._calls:
            return "", ToolCalls(self.shown)
        found = parse_tool_calls(self._ids, self._tokenizer, turn=self._turn)
        problem = found.problem
        for call in found.calls:
            wrong = problem_within(call.arguments)  # neither a later prompt nor a file could hold it
            if wrong is not None:
                problem = f"the value of {call.name}'s arguments {wrong}"
        if problem is None:
            return found.text.removeprefix(self.shown), found
        rest = "".join(self._held)
        return rest, ToolCalls(self.shown + rest, problem=problem)
