"""The tokenizer of a checkpoint: text to ids, conversations to ids, ids to text.

Knows how the parts of this package fit together; knows no models. A `Tokenizer` does not change after it is made and
may be used from several threads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.errors import ChatTemplateError, TokenizerError
from core.text.detokenizer import Detokenizer
from core.text.fence import Fence, FencedEncoder, Literals
from core.text.files import DEFAULT_TEMPLATE, TOOL_TEMPLATE, Json, TextFiles, parse_json_object
from core.text.instruct import Instruct, Part
from core.text.pieces import Pieces
from core.text.special import complete_added_tokens, read_special_tokens
from core.text.templates import render

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

Messages = Sequence[Mapping[str, Any]]


def load_tokenizer(
    directory: str | os.PathLike[str], *, config: Json | None = None, generation_config: Json | None = None
) -> Tokenizer:
    """The tokenizer of a checkpoint's directory.

    Args:
        directory: holds ``tokenizer.json``; ``tokenizer_config.json``, ``special_tokens_map.json``,
            ``chat_template.jinja`` or ``.json``, ``generation_config.json`` and ``config.json`` are optional.
        config, generation_config: parsed already; read from the directory when not given.

    Raises:
        TokenizerError: a tokenizer file that is absent, damaged or refused by ``tokenizers``.
        ChatTemplateError: a chat template in a form nobody knows. Its syntax is checked when it is first used.
        ConfigError: ``config.json`` or ``generation_config.json`` is damaged, or states EOS ids that are not ids.
    """
    return Tokenizer.from_files(TextFiles.read(directory, config=config, generation_config=generation_config))


class Tokenizer:
    """Text and conversations to token ids and back.

    Attributes:
        bos_id: the id that begins a sequence; None when the tokenizer has none.
        eos_ids: every id that ends a text: those of ``generation_config.json``, of ``config.json`` and the tokenizer's.
        special_ids: control tokens, which `decode` skips.
        special_tokens: role to literal (``{"bos_token": "<s>", …}``), as chat templates see them.
        vocab_size: number of tokens, added ones included (a model's embedding may have more rows).
        chat_templates: sources by name.
    """

    def __init__(self, backend: Backend, files: TextFiles) -> None:
        complete_added_tokens(backend, files)
        special = read_special_tokens(backend, files)
        added = backend.get_added_tokens_decoder()
        self._backend = backend
        self._files = files
        self._prefix, self._suffix = list(special.prefix), list(special.suffix)
        self.bos_id = special.bos_id
        self.eos_ids = special.eos_ids
        self.special_tokens = dict(special.names)
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.chat_templates = dict(files.chat_templates)
        self._pieces = Pieces(backend, self.special_ids)
        self._literals = Literals(frozenset(added[token_id].content for token_id in self.special_ids))
        self._encoder = FencedEncoder(backend, self.special_ids)
        # Text that only normalizes to a control token's literal cannot be seen beforehand: then always fence.
        self._always_fence = backend.normalizer is not None and any(
            added[token_id].normalized for token_id in self.special_ids
        )
        names = special.names
        self._instruct = Instruct.of(backend, self.special_ids, names.get("bos_token"), names.get("eos_token"))
        self._word_start = _word_start(backend)

    @classmethod
    def from_files(cls, files: TextFiles) -> Tokenizer:
        """The tokenizer that ``files`` describe.

        Raises:
            TokenizerError, ConfigError: as `load_tokenizer`.
        """
        return cls(_read_backend(files), files)

    @property
    def chat_template(self) -> str | None:
        """The source of the chat template used by default; None when the checkpoint has none."""
        return self.chat_templates.get(DEFAULT_TEMPLATE)

    @property
    def can_chat(self) -> bool:
        """Whether conversations are understood: by a chat template, or by a vocabulary's known instruction format."""
        return bool(self.chat_templates) or self._instruct is not None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a raw prompt. Literals of control tokens in ``text`` become control tokens.

        Args:
            text: the prompt.
            add_special_tokens: put BOS (and EOS) around it, by the tokenizer's own rules. A text that begins with the
                BOS literal gets no second one.

        Raises:
            TokenizerError: ``text`` cannot be encoded as UTF-8.
        """
        ids: list[int] = self._encoded(text)
        if not add_special_tokens:
            return ids
        prefix = [] if ids[: len(self._prefix)] == self._prefix else self._prefix
        suffix = [] if self._suffix and ids[-len(self._suffix) :] == self._suffix else self._suffix
        return prefix + ids + suffix

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ``ids``. Bytes that make no character become U+FFFD.

        Raises:
            TokenizerError: no token has one of the ids.
        """
        text: str = self._backend.decode(self._pieces.checked(ids), skip_special_tokens=skip_special_tokens)
        return text

    def detokenizer(self, prompt_ids: Iterable[int] = ()) -> Detokenizer:
        """A streaming decoder of the ids that follow ``prompt_ids``.

        Without prompt the stream is `decode` of its ids. With one, text goes on from the prompt's: a word that begins
        with a space keeps it. Give the prompt where the text continues it, and none where an answer begins.
        """
        return Detokenizer(self._pieces, prompt_ids)

    def id_of(self, token: str) -> int | None:
        """The id of a token's form in the vocabulary (``"</s>"``, ``"▁the"``); None when there is none."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    def token_of(self, token_id: int) -> str:
        """The form in the vocabulary.

        Raises:
            TokenizerError: no token has this id.
        """
        return self._pieces.token(token_id)

    def render_chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation, control tokens as their literals: for reading.

        Use `encode_chat` for ids: in this text, a literal that a user wrote looks like the control token.

        Args:
            messages: ``[{"role": "user", "content": "…"}, …]``.
            tools: functions that the model may call, as JSON schemas in OpenAI's form.
            add_generation_prompt: end where the assistant's answer begins.
            chat_template: name of one of the checkpoint's templates, or a template's source.
            variables: further variables of the template, such as ``enable_thinking``.

        Raises:
            ChatTemplateError: there is no template and no known format, the template refuses the conversation (its own
                message is in the error), is broken, or does what the sandbox forbids.
        """
        fence = Fence(self._literals)
        source = self._template(chat_template, bool(tools))
        if source is None:
            return "".join(self._shown(part) for part in self._instruct_parts(fence, messages, tools))
        return fence.restore(self._rendered(source, fence, messages, tools, add_generation_prompt, variables))

    def encode_chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a conversation. BOS is what the template writes, and never doubled.

        Text in ``messages``, ``tools`` and ``variables`` stays text, also where it contains the literal of a control
        token. Arguments and errors are those of `render_chat`.
        """
        fence = Fence(self._literals)
        source = self._template(chat_template, bool(tools))
        if source is None:
            return [i for part in self._instruct_parts(fence, messages, tools) for i in self._part_ids(part)]
        rendered = self._rendered(source, fence, messages, tools, add_generation_prompt, variables)
        fenced = fence.needed or self._always_fence
        ids = self._encoder.encode(rendered, fence) if fenced else self._encoded(rendered)
        return ids[1:] if ids[:2] == [self.bos_id, self.bos_id] else ids

    def _template(self, chosen: str | None, with_tools: bool) -> str | None:
        """The template's source; None where the vocabulary's instruction format serves instead."""
        templates = self.chat_templates
        if chosen is not None:
            if chosen not in templates and "{" not in chosen:
                raise ChatTemplateError(
                    f"no chat template is named {chosen!r}",
                    where=self._files.template_where,
                    found=", ".join(sorted(templates)) or "none",
                )
            return templates.get(chosen, chosen)
        if with_tools and TOOL_TEMPLATE in templates:
            return templates[TOOL_TEMPLATE]
        if DEFAULT_TEMPLATE in templates:
            return templates[DEFAULT_TEMPLATE]
        if templates:
            raise ChatTemplateError(
                "no chat template is named 'default'",
                where=self._files.template_where,
                found=", ".join(sorted(templates)),
                hint="Choose one by name: chat_template=…",
            )
        if self._instruct is None:
            raise ChatTemplateError(
                "the tokenizer has no chat template, and its vocabulary is of no known instruction format",
                where=self._files.where,
                hint="Give a text instead of a conversation, pass chat_template=…, or add chat_template.jinja.",
            )
        return None

    def _rendered(
        self,
        source: str,
        fence: Fence,
        messages: Messages,
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        given = {
            "messages": fence.protect(_conversation(messages)),
            "tools": fence.protect(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        return render(
            source,
            {**self.special_tokens, **given, **{name: fence.protect(value, name) for name, value in variables.items()}},
            where=self._files.template_where,
        )

    def _instruct_parts(
        self, fence: Fence, messages: Messages, tools: Sequence[Mapping[str, Any]] | None
    ) -> list[Part]:
        assert self._instruct is not None  # _template has raised otherwise
        _conversation(messages)
        return self._instruct.parts(messages, tools)

    def _shown(self, part: Part) -> str:
        return part.text if part.is_control or not self._word_start else f" {part.text}"

    def _part_ids(self, part: Part) -> list[int]:
        """Ids of one part. SentencePiece puts one space before every text, also one that begins with spaces."""
        if part.is_control:
            token_id = self.id_of(part.text)
            if token_id is None:
                raise ChatTemplateError(f"the vocabulary has no control token {part.text!r}", where=self._files.where)
            return [token_id]
        if self._word_start == "Metaspace":  # puts a space before words only, and not after a control token
            return self._encoder.encode_text_after_token(f" {part.text}")
        return self._encoder.encode_text(part.text)

    def _encoded(self, text: str) -> list[int]:
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        except (UnicodeError, TypeError) as error:
            if not isinstance(text, str):
                raise TypeError(f"a prompt is a str, not {type(text).__name__}") from error
            raise TokenizerError(f"the text is not valid Unicode: {error}") from error
        return ids


def _conversation(messages: object) -> Messages:
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise ChatTemplateError("a conversation is a list of messages", found=type(messages).__name__)
    if not messages:
        raise ChatTemplateError("the conversation is empty", expected="at least one message")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ChatTemplateError("a message is a mapping with a role and content", found=repr(message)[:80])
    return messages


def _read_backend(files: TextFiles) -> Backend:
    """``tokenizer.json`` as ``tokenizers`` reads it, without the truncation and padding that training may have left."""
    import tokenizers

    where = None if files.where is None else files.where / "tokenizer.json"
    try:
        backend = tokenizers.Tokenizer.from_buffer(files.tokenizer)
    except BaseException as error:
        # The parser's panics are no Exception; interruptions of the program pass through.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        parse_json_object(files.tokenizer, where, TokenizerError)
        raise TokenizerError(
            f"is refused by tokenizers {tokenizers.__version__}: {error}",
            where=where,
            hint="It may need a newer version of the tokenizers package, or be damaged.",
        ) from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _word_start(backend: Backend) -> str | None:
    """Which component marks the start of a word as SentencePiece does: Prepend, Metaspace or none."""
    for component, name in ((backend.normalizer, "Prepend"), (backend.pre_tokenizer, "Metaspace")):
        if component is not None and f'"type":"{name}"' in json.dumps(
            json.loads(component.__getstate__()), separators=(",", ":")
        ):
            return name
    return None
