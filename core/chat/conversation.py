"""``Conversation``: messages exchanged with a model, with one cache for all of them.

Each prompt is rendered by the chat template from all messages. Only the tokens that differ from those in the cache are
processed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from core.chat.answer import AnswerText
from core.chat.context import ContextPolicy, checked_policy, fitted, usable
from core.chat.messages import Message, answered, checked_messages, checked_tools, shown, turns
from core.chat.reuse import Held
from core.chat.storage import read_conversation, write_conversation
from core.errors import ConversationError, TokenizerError, UsageError
from core.generation import GenerationChunk, GenerationResult
from core.nn import depends_on_length
from core.text.tool_calls import ToolCalls

if TYPE_CHECKING:
    from core.language_model import LanguageModel

_DEFAULT_MAX_TOKENS = 1024
_CACHE_OPTIONS = ("max_kv_tokens", "kv_bits", "kv_group_size")


class Conversation:
    """A conversation with a model.

        chat = core.Conversation(lm, system="Be brief.")
        print(chat.generate("Who are you?").text)
        for chunk in chat.stream("And I?"):
            print(chunk.text, end="")

    One answer at a time. It becomes a message when it is complete. If its iterator is closed early, the text yielded so
    far is kept and marked ``interrupted``. If there is no text, after an error, an early end or an empty answer, the
    question is removed too, so that roles alternate as templates require.

    Args:
        lm: the model, with a tokenizer.
        system: the system prompt.
        messages: earlier messages; a system message at the beginning is the system prompt.
        tools: functions that the model may call, as JSON schemas in OpenAI's form.
        chat_template: as for ``Tokenizer.encode_chat``; None takes the checkpoint's.
        context: tokens of prompt and answer together, at most the model's context, which is the default.
        context_policy: what happens when they no longer fit; see ``core.chat.context``.
        reuse: keep the cache between turns; False processes every prompt whole.
        options: for ``LanguageModel.stream``, for all answers. ``max_kv_tokens``, ``kv_bits`` and ``kv_group_size``
            are settings of the cache.

    Attributes:
        system, tools, options: as above; a change takes effect with the next answer.
        result: of the last answer; its ``prompt_ids`` are those that were processed for it.
        calls: the tool calls of the last answer, as in ``result``, and errors in their form.
        left_out: number of messages at the beginning that the last prompt left out.

    Raises:
        TokenizerError: the model has no tokenizer.
        ConversationError: invalid messages or tools.
        UsageError: an unknown policy.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        system: str | None = None,
        messages: Sequence[Mapping[str, Any]] = (),
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        context: int | None = None,
        context_policy: ContextPolicy = "drop-oldest",
        reuse: bool = True,
        **options: Any,
    ) -> None:
        if lm.tokenizer is None:
            raise TokenizerError("a conversation needs a tokenizer", hint="Load the model with one.")
        cache_options = {name: options.pop(name) for name in _CACHE_OPTIONS if name in options}
        self.lm, self.system, self.options = lm, system, options
        self.tools = None if tools is None else checked_tools(tools)
        self.result: GenerationResult | None = None
        self.calls = ToolCalls("")
        self.left_out = 0
        self._chat_template = chat_template
        self._context = usable(context, lm.context)
        self._policy = checked_policy(context_policy)
        self._held = Held(lambda: lm.model.make_cache(1, **cache_options))
        # Keys rotated for a shorter prompt differ from those for a longer one.
        self._reuse = reuse and not depends_on_length(lm.model)
        self._answering = False
        self._messages: list[Message] = []  # never changed in place, so that a failure can restore it
        self._take(checked_messages(messages))

    @property
    def messages(self) -> list[Message]:
        """All messages, the system prompt first."""
        first: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        return first + [dict(message) for message in self._messages]

    @property
    def cached_tokens(self) -> int:
        """Tokens that the cache holds."""
        return len(self._held.ids)

    @property
    def context(self) -> int | None:
        """Tokens that prompt and answer may have together; None if no limit is known."""
        return self._context

    def generate(self, message: str | Mapping[str, Any] | None = None, **options: Any) -> GenerationResult:
        """Generates the whole answer. Arguments and errors are those of ``stream``."""
        for chunk in self.stream(message, **options):
            if chunk.result is not None:
                return chunk.result
        raise AssertionError("a stream ends with its result")

    def stream(self, message: str | Mapping[str, Any] | None = None, **options: Any) -> Iterator[GenerationChunk]:
        """Adds a message and streams the answer, which becomes a message too.

        Args:
            message: the user's text, or a message of any role; None answers the messages added before.
            options: for this answer; they override those of the conversation.

        Returns:
            Pieces as ``LanguageModel.stream`` yields them. Their text, and the result's, leaves out tool calls;
            these are in the result's ``tool_calls``.

        Raises:
            ConversationError: there is nothing to answer, or it does not fit into the context; from the iterator: the
                conversation has changed since, or another answer is being generated.
            ChatTemplateError, UsageError: as ``LanguageModel.stream``. The conversation is then as it was.
        """
        return self._stream(self._messages + ([] if message is None else _checked(message)), options)

    def add(self, message: str | Mapping[str, Any]) -> None:
        """Adds a message without answering it, such as a tool's result.

        Raises:
            ConversationError: it is not a valid message.
        """
        self._messages = self._messages + _checked(message)

    def regenerate(self, **options: Any) -> Iterator[GenerationChunk]:
        """Removes the last answer and streams another one. If that fails or has no text, the old one stays.

        With temperature 0, or the same seed, the answer is the same again.

        Raises:
            ConversationError: there is no answer, or as ``stream``.
        """
        if not self._messages or self._messages[-1]["role"] != "assistant":
            raise ConversationError("there is no answer to regenerate")
        return self._stream(self._messages[:-1], options)

    def undo(self) -> Message | None:
        """Removes the last turn: the user's message and all answers to it. Returns that message; None if there is no
        turn."""
        begins = turns(self._messages)
        if not begins:
            return None
        self._messages, undone = self._messages[: begins[-1]], self._messages[begins[-1] :]
        self.left_out = min(self.left_out, *begins[-2:-1], len(self._messages))
        return next((message for message in undone if message["role"] == "user"), undone[0])

    def reset(self) -> None:
        """Removes all messages except the system prompt."""
        self._messages, self.left_out = [], 0
        self._held.forget()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes messages and tools as JSON, completely or not at all. A conversation already in the file is replaced.

        Raises:
            ConversationError: the file cannot be written, or is something else.
        """
        write_conversation(path, self.messages, tools=self.tools, model=str(self.lm.report.plan.source))

    def load(self, path: str | os.PathLike[str]) -> Self:
        """Replaces messages and tools by those of a file, and returns itself.

        Raises:
            ConversationError: the file cannot be read, or holds no conversation; the conversation is then as it was.
        """
        stored = read_conversation(path)
        self.reset()
        self.system, self.tools = None, stored.tools
        self._take(stored.messages)
        return self

    def prompt_ids(self) -> list[int]:
        """The whole prompt of the next answer, as it is now; for inspection."""
        return self._encoded(self._messages[self.left_out :])

    def _take(self, messages: list[Message]) -> None:
        if messages and messages[0]["role"] == "system" and isinstance(messages[0].get("content"), str):
            if self.system is not None:
                raise UsageError("the messages have a system prompt of their own", hint="Give one or the other.")
            self.system = messages.pop(0)["content"]
        self._messages = messages

    def _encoded(self, messages: Sequence[Message]) -> list[int]:
        assert self.lm.tokenizer is not None
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        sent = first + [shown(message) for message in messages]
        return self.lm.tokenizer.encode_chat(sent, tools=self.tools, chat_template=self._chat_template)

    def _stream(self, messages: list[Message], options: dict[str, Any]) -> Iterator[GenerationChunk]:
        if not messages or messages[-1]["role"] == "assistant":
            raise ConversationError("there is nothing to answer", hint="Send a message.")
        options = self.options | options
        if options.get("max_tokens") is None:
            stated = self.lm.generation_config.get("max_new_tokens")
            options["max_tokens"] = stated if isinstance(stated, int) and stated > 0 else _DEFAULT_MAX_TOKENS
        self.left_out, ids = fitted(
            messages,
            self.left_out,
            self._encoded,
            max_tokens=options["max_tokens"],
            context=self._context,
            policy=self._policy,
        )
        if self._context is not None:
            options["max_tokens"] = min(options["max_tokens"], self._context - len(ids))
        return self._answer(self._messages, messages, ids, options)

    def _answer(
        self, old: list[Message], messages: list[Message], ids: list[int], options: dict[str, Any]
    ) -> Iterator[GenerationChunk]:
        assert self.lm.tokenizer is not None
        if self._answering:
            raise ConversationError("another answer is under way", hint="Read it to its end, or close its iterator.")
        if self._messages is not old:
            raise ConversationError("the conversation has changed since this answer was asked for")
        self._messages, self._answering = messages, True
        held, answer = self._held, AnswerText(self.lm.tokenizer, turn=len(messages))
        kept = False
        try:
            if not self._reuse:
                held.forget()
            cache, new = held.prepare(ids)
            stream = self.lm.stream(new, cache=cache, history=held.ids, continues=False, **options)
            try:
                for chunk in stream:
                    text, result = answer.add(chunk.text, chunk.token_id), chunk.result
                    if result is not None:
                        rest, self.calls = answer.finish()
                        text += rest
                        said, calls = self.calls.text, self.calls.calls
                        self.result = result = dataclasses.replace(result, text=said, tool_calls=calls)
                        held.extend([*new, *result.token_ids])
                        kept = self._keep(self.calls)
                    yield dataclasses.replace(chunk, text=text, result=result)
            except GeneratorExit:
                stream.close()  # type: ignore[attr-defined]
                if not kept:  # otherwise the stream was closed after its end
                    held.extend([*new, *answer.ids])
                    kept = self._keep(ToolCalls(answer.shown), interrupted=True)
                raise
        except BaseException as error:
            if not isinstance(error, GeneratorExit):
                held.forget()  # a failed step may have changed a part of the cache
            raise
        finally:
            self._answering = False
            if not kept:
                self._messages = old

    def _keep(self, said: ToolCalls, *, interrupted: bool = False) -> bool:
        """Makes a message of the answer; returns False if it is empty."""
        if not said.text.strip() and not said.calls:
            return False
        self._messages = [*self._messages, answered(said, interrupted=interrupted)]
        return True


def _checked(message: str | Mapping[str, Any]) -> list[Message]:
    return checked_messages([{"role": "user", "content": message} if isinstance(message, str) else message])
