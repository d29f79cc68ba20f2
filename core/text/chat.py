"""Turns conversations into prompts: chooses the chat template or instruction format, and encodes its text.

Users' text is kept apart from control tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.errors import ChatTemplateError
from core.text.backend import parts
from core.text.content import Messages, Parts, checked_conversation, parts_of
from core.text.encoder import FencedEncoder
from core.text.fence import Fence, Literals
from core.text.files import DEFAULT_TEMPLATE, TOOL_TEMPLATE, TextFiles
from core.text.instruct import Instruct, Part
from core.text.origin import Traced
from core.text.templates import literals_read, names_read, render, words_written
from core.text.values import given, given_messages

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

Tools = Sequence[Mapping[str, Any]]


class TemplateWarning(UserWarning):
    """A chat template ignores something that it is given."""


class Chat:
    """Makes the prompts of conversations for one tokenizer.

    Args:
        backend: the tokenizer.
        files: the checkpoint's templates.
        special_tokens: role to literal.
        special_ids: the control tokens.
    """

    def __init__(
        self, backend: Backend, files: TextFiles, special_tokens: Mapping[str, str], special_ids: frozenset[int]
    ) -> None:
        self._backend = backend
        self._templates = files.chat_templates
        self._where, self._template_where = files.where, files.template_where
        self._special_tokens = special_tokens
        self._special_ids = special_ids
        # Added tokens that may be control tokens although they are not marked special: signs, not words or spaces.
        self._unmarked = {
            token_id: token.content
            for token_id, token in backend.get_added_tokens_decoder().items()
            if token_id not in special_ids and token.content.strip() and not token.content.strip().isalnum()
        }
        self._guards: dict[frozenset[int], Guard] = {}
        bos, eos = special_tokens.get("bos_token"), special_tokens.get("eos_token")
        self._instruct = Instruct.of(backend, special_ids, bos, eos)
        names = {part["type"] for part in [*parts(backend.normalizer), *parts(backend.pre_tokenizer)]}
        self._word_start = next((name for name in ("Prepend", "Metaspace") if name in names), None)

    @property
    def is_possible(self) -> bool:
        return bool(self._templates) or self._instruct is not None

    @property
    def format(self) -> str | None:
        """The format of conversations: ``"template"``, ``"instruct v3"`` (of that version), or None."""
        if self._templates:
            return "template"
        return None if self._instruct is None else f"instruct v{self._instruct.version}"

    def render(
        self, messages: Messages, tools: Tools | None, template: str | None, variables: Mapping[str, Any]
    ) -> str:
        """The prompt's text."""
        source = self._source(template, bool(tools))
        if source is None:
            return "".join(map(self._shown, self._instruct_parts(messages, tools)))
        return "".join([self._rendered(source, messages, tools, variables)])

    def encode(
        self, messages: Messages, tools: Tools | None, template: str | None, variables: Mapping[str, Any]
    ) -> list[int]:
        """The prompt's ids."""
        source = self._source(template, bool(tools))
        if source is None:
            return [i for part in self._instruct_parts(messages, tools) for i in self._part_ids(part)]
        guard = self._guard(source)
        return guard.encoder.encode(Fence(guard.literals, self._rendered(source, messages, tools, variables)))

    def _source(self, chosen: str | None, with_tools: bool) -> str | None:
        """The template's source; None if the vocabulary's instruction format is used instead."""
        templates, where = self._templates, self._template_where
        if chosen is not None:
            if chosen not in templates and "{" not in chosen:
                found = ", ".join(sorted(templates)) or "none"
                raise ChatTemplateError(f"no chat template is named {chosen!r}", where=where, found=found)
            return templates.get(chosen, chosen)
        if with_tools and TOOL_TEMPLATE in templates:
            return templates[TOOL_TEMPLATE]
        if DEFAULT_TEMPLATE in templates:
            return templates[DEFAULT_TEMPLATE]
        if templates:
            raise ChatTemplateError(
                f"no chat template is named {DEFAULT_TEMPLATE!r}",
                where=where,
                found=", ".join(sorted(templates)),
                hint="Choose one by its name: core.Conversation(lm, chat_template=…) or "
                "lm.tokenizer.encode_chat(messages, chat_template=…).",
            )
        if self._instruct is None:
            raise ChatTemplateError(
                "the tokenizer has no chat template, and its vocabulary belongs to no known instruction format",
                where=self._where,
                hint="Give a text instead of a conversation, or put chat_template.jinja beside the tokenizer's files. "
                "These take a template of yours: core.Conversation(lm, chat_template=…), "
                "lm.tokenizer.encode_chat(messages, chat_template=…), corelm chat --chat-template FILE.",
            )
        return None

    def _guard(self, source: str) -> Guard:
        """The `Guard` that keeps control tokens and text apart under one template.

        Control tokens are the special ones, and those added tokens that the template writes although they are not
        marked special (``<|im_start|>`` is not, in some checkpoints). Added tokens that the template looks for in
        messages (``</think>``) are allowed in users' text.
        """
        read = literals_read(source) if self._unmarked else ()
        control_ids = self._special_ids | {
            token_id
            for token_id, literal in self._unmarked.items()
            if literal in source and not any(literal in other for other in read)
        }
        # Two threads may both make one; both are right.
        guard = self._guards.get(control_ids)
        if guard is None:
            guard = self._guards[control_ids] = Guard(self._backend, control_ids)
        return guard

    def _rendered(self, source: str, messages: Messages, tools: Tools | None, variables: Mapping[str, Any]) -> Traced:
        """The prompt's text. A content in parts is joined to one text if the template does not iterate over the
        parts."""
        plain = checked_conversation(messages)
        if tools and "tools" not in names_read(source):
            warnings.warn(
                "the chat template does not use tools: the model is not told of them", TemplateWarning, stacklevel=4
            )
        values = given({"tools": list(tools) if tools else None, "documents": None, **variables})
        mentioned = words_written(source)
        in_parts = {place for place, message in enumerate(plain) if parts_of(message.get("content"))}
        joined: set[int] = set()
        while True:
            given_parts = given_messages(plain, mentioned, joined)
            try:
                text = self._render(source, {"messages": given_parts, **values})
            except ChatTemplateError:
                if joined >= in_parts:
                    raise
                joined = in_parts
                continue
            unused = {place for place in in_parts - joined if not _is_used(given_parts[place]["content"])}
            if not unused:
                return text
            joined |= unused

    def _render(self, source: str, values: Mapping[str, Any]) -> Traced:
        return render(source, values, written=self._special_tokens, where=self._template_where)

    def _instruct_parts(self, messages: Messages, tools: Tools | None) -> list[Part]:
        assert self._instruct is not None  # otherwise _source has raised an error
        plain = checked_conversation(messages)
        given([list(plain), tools])  # refuses data that is not plain, or nested too deeply
        return self._instruct.parts(plain, tools)

    def _shown(self, part: Part) -> str:
        return part.text if part.is_control or self._word_start is None else f" {part.text}"

    def _part_ids(self, part: Part) -> list[int]:
        """Ids of one part. SentencePiece puts one space before every text, even if the text begins with spaces."""
        if part.is_control:
            token_id = self._backend.token_to_id(part.text)
            if token_id is None:
                raise ChatTemplateError(f"the vocabulary has no token {part.text!r}", where=self._where)
            return [token_id]
        encoder = self._guard("").encoder
        if self._word_start == "Metaspace":  # Metaspace puts a space only before words, and none after a control token
            return encoder.encode_text_after_token(f" {part.text}")
        return encoder.encode_text(part.text)


class Guard:
    """What is needed to tell one set of control tokens from text."""

    def __init__(self, backend: Backend, control_ids: frozenset[int]) -> None:
        added = backend.get_added_tokens_decoder()
        self.literals = Literals(frozenset(added[token_id].content for token_id in control_ids))
        self.encoder = FencedEncoder(backend, control_ids)


def _is_used(parts: Parts) -> bool:
    return parts.used and not parts.printed
