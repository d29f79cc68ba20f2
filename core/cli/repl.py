"""The loop of ``corelm chat``: a message or a command in, an answer out."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.chat.messages import INTERRUPTED
from core.cli.interrupt import Interruption
from core.cli.progress import prompt_progress
from core.cli.reading import NextLine, next_said
from core.cli.sampling import described
from core.cli.screen import Screen
from core.cli.terminal import clean, clean_prose, fold, is_terminal, put, say, size
from core.errors import CoreError, UsageError

if TYPE_CHECKING:
    from core.chat import Conversation
    from core.generation import GenerationChunk

HELP = '''\
/help          this list
/reset         forget all messages but the system prompt
/save FILE     write the conversation as JSON
/load FILE     go on with a conversation that was saved
/regen         answer the last message anew
/undo          take the last message and its answer back
/stats         what the last answer cost
/system [TEXT] show the system prompt, or change it; - takes it away
/exit          end, as Ctrl-D does
A line is a message; one that ends with \\ goes on in the next line; """ begins and ends a message of several lines;
// begins a message that begins with /. Ctrl-C stops an answer, of which what was said is kept.'''

_UNFORESEEN = """\
This is a fault of corelm or of a plugin; corelm chat --debug shows where it happened.
What was said before is kept: go on, or write it to a file with /save FILE."""


class Repl:
    """Reads, answers, prints.

    Args:
        chat: the conversation.
        line: where messages come from.
        screen: where answers go.
        interactive: somebody types: errors are shown and the loop goes on, and Ctrl-C stops an answer only. Otherwise
            the first error ends it.
        debug: show the traceback of an error that nobody has foreseen.
    """

    def __init__(
        self, chat: Conversation, line: NextLine, screen: Screen, *, interactive: bool, debug: bool = False
    ) -> None:
        self._chat, self._line, self._screen = chat, line, screen
        self._interactive, self._debug = interactive, debug
        self._again = 0  # how often the last message was answered anew
        self._commands: dict[str, Callable[[str], None]] = {
            "help": self._help,
            "reset": self._reset,
            "save": self._save,
            "load": self._load,
            "regen": self._regen,
            "undo": self._undo,
            "stats": self._stats,
            "system": self._system,
        }

    def run(self) -> int:
        """Until the input ends, or ``/exit``; returns the exit code."""
        while True:
            said = None
            try:
                said = next_said(self._line)
                if not said.is_command:
                    self._again = 0
                    self._answer(self._chat.stream, said.text)
                    continue
                name, _, rest = said.text.partition(" ")
                if name == "exit":
                    return 0
                if name not in self._commands:
                    raise UsageError(f"there is no command /{name}", hint="/help lists those that there are.")
                self._commands[name](rest.strip())
            except EOFError:
                if self._interactive:
                    say("")  # the shell's prompt belongs on a line of its own
                return 0
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                say("\n(Ctrl-D or /exit ends)")
            except (CoreError, OSError) as error:
                if not self._interactive or isinstance(error, BrokenPipeError):
                    raise
                say(fold("error: ", str(error)))
            except Exception as error:
                if not self._interactive or said is None:  # nothing can be read any more
                    raise
                if self._debug:
                    say(clean_prose(traceback.format_exc()))
                say(fold("error: ", f"{type(error).__name__}: {error}\n{_UNFORESEEN}"))

    def _answer(self, begin: Callable[..., Iterator[GenerationChunk]], *message: str, **options: Any) -> None:
        chat, left_out = self._chat, self._chat.left_out
        with contextlib.ExitStack() as stack:
            interruption = Interruption()
            if self._interactive:
                stack.enter_context(interruption)
            bar = stack.enter_context(contextlib.ExitStack())
            advance = bar.enter_context(prompt_progress())

            def progress(done: int, total: int) -> None:
                interruption.check()
                if advance is not None:
                    advance(done, total)

            stack.enter_context(self._stopped(interruption))
            stream = begin(*message, progress=progress, **options)
            if chat.left_out > left_out:
                say(f"note: the context is full; the first {chat.left_out} messages are no longer sent to the model")
            stack.callback(self._screen.finish)
            stack.enter_context(contextlib.closing(stream))  # type: ignore[type-var]
            for chunk in stream:
                bar.close()  # the prompt is processed
                self._screen.add(chunk.text)
                if interruption.requested:
                    break
        self._remark(stopped=interruption.requested)

    @contextlib.contextmanager
    def _stopped(self, interruption: Interruption) -> Iterator[None]:
        """Where somebody types, an answer that Ctrl-C ended at once is one that was stopped."""
        try:
            yield
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            interruption.requested = True

    def _remark(self, *, stopped: bool) -> None:
        """What there is to say about an answer beside it."""
        chat, last = self._chat, self._chat.messages[-1:]
        if stopped:
            kept = bool(last) and last[0].get(INTERRUPTED, False)
            say("(stopped; what was said is kept)" if kept else "(stopped; the message is taken back)")
            return
        for call in chat.calls.calls:
            put(f"{clean(call.name)}({clean(json.dumps(call.arguments, ensure_ascii=False))})")
        if chat.calls.problem is not None:
            say(f"note: a tool call of the model is malformed: {clean(chat.calls.problem)}")
        if chat.result is not None and chat.result.finish_reason != "stop" and self._interactive:
            say(f"(ended by {chat.result.finish_reason} after {len(chat.result.token_ids):,} tokens)")
        if not last or last[0]["role"] != "assistant":
            say("note: the model said nothing; the message is taken back")

    def _help(self, _: str) -> None:
        put(HELP)

    def _reset(self, _: str) -> None:
        self._chat.reset()

    def _save(self, file: str) -> None:
        self._chat.save(_path(file, "save"))

    def _load(self, file: str) -> None:
        self._chat.load(_path(file, "load"))
        if self._interactive:
            say(f"({len(self._chat.messages):,} messages)")

    def _regen(self, _: str) -> None:
        result, options = self._chat.result, {}
        seed = self._chat.options.get("seed")
        if seed is not None:
            options["seed"] = seed + self._again + 1  # the same one would say the same
        answered = any(message["role"] == "assistant" for message in self._chat.messages[-1:])
        if answered and result is not None and not result.sampling.temperature:
            say("note: at temperature 0 the answer is the same again; see --temperature")
        self._answer(self._chat.regenerate, **options)
        self._again += 1

    def _undo(self, _: str) -> None:
        undone = self._chat.undo()
        if undone is None:
            raise UsageError("there is nothing to take back")
        if self._interactive:
            content = undone.get("content")
            say(f"(taken back: {clean(content)[:60] if isinstance(content, str) else undone['role']})")

    def _stats(self, _: str) -> None:
        chat, result = self._chat, self._chat.result
        if result is None:
            raise UsageError("there are no statistics before the first answer")
        stats, context = result.stats, chat.context
        lines = [
            f"prompt    {len(result.prompt_ids):,} new tokens, {stats.prompt_tps:.1f} tok/s",
            f"decode    {stats.generated_tokens:,} tokens, {stats.decode_tps:.1f} tok/s",
            f"ended by  {result.finish_reason}",
            f"context   {chat.cached_tokens:,} tokens" + ("" if context is None else f" of {context:,}"),
            f"memory    {size(stats.peak_memory)} at most",
            f"sampling  {described(result.sampling)}",
        ]
        put(lines)

    def _system(self, text: str) -> None:
        if not text:
            shown = clean_prose if is_terminal(sys.stdout) else str
            put("(none)" if self._chat.system is None else shown(self._chat.system))
        else:
            self._chat.system = None if text == "-" else text


def _path(file: str, command: str) -> Path:
    if not file:
        raise UsageError(f"/{command} which file?", hint=f"For instance /{command} chat.json")
    try:
        return Path(file).expanduser()
    except RuntimeError:
        raise UsageError(f"/{command}: nobody's home directory is {file.split('/')[0]}") from None
