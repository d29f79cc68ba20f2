"""``Tokenizer``: the tokenizer of a checkpoint. Text to ids, conversations to ids, ids to text.

A `Tokenizer` does not change after it is made, and several threads may use it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.text.backend import open_backend
from core.text.chat import Chat, Tools
from core.text.content import Messages
from core.text.detokenizer import Detokenizer
from core.text.encoder import encode, encode_with_ends
from core.text.files import DEFAULT_TEMPLATE, Json, TextFiles
from core.text.native import NativeTokenizer, find_native
from core.text.pieces import Pieces
from core.text.special import complete_added_tokens, read_special_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


def load_tokenizer(
    directory: str | os.PathLike[str], *, config: Json | None = None, generation_config: Json | None = None
) -> Tokenizer | NativeTokenizer:
    """The tokenizer of a checkpoint's directory: its ``tokenizer.json``, else Mistral's own file.

    Args:
        directory: holds ``tokenizer.json``, ``tekken.json`` or ``tokenizer.model.v*``; ``tokenizer_config.json``,
            ``special_tokens_map.json``, ``chat_template.jinja`` or ``.json``, ``generation_config.json`` and
            ``config.json`` are optional.
        config, generation_config: already parsed; read from the directory when not given.

    Raises:
        TokenizerError: a tokenizer file that is absent, damaged or refused by ``tokenizers``.
        ChatTemplateError: a chat template in an unknown form. Its syntax is checked at its first use.
        ConfigError: ``config.json`` or ``generation_config.json`` is damaged, or states EOS ids that are not ids.
    """
    path = Path(directory)
    native = None if (path / "tokenizer.json").exists() else find_native(path)
    if native is not None:
        return NativeTokenizer(native)
    return Tokenizer.from_files(TextFiles.read(directory, config=config, generation_config=generation_config))


class Tokenizer:
    """Text and conversations to token ids and back.

    Attributes:
        bos_id: the id that begins a sequence; None when the tokenizer has none.
        eos_ids: every id that ends a text: those of ``generation_config.json``, of ``config.json`` and the tokenizer's.
        special_ids: control tokens, which `decode` skips.
        special_tokens: role to literal (``{"bos_token": "<s>", …}``), as chat templates get them.
        vocab_size: number of tokens, added ones included (a model's embedding may have more rows).
        chat_templates: sources by name.
    """

    def __init__(self, backend: Backend, files: TextFiles) -> None:
        complete_added_tokens(backend, files)
        special = read_special_tokens(backend, files)
        self._backend = backend
        self._prefix, self._suffix = list(special.prefix), list(special.suffix)
        self.bos_id = special.bos_id
        self.eos_ids = special.eos_ids
        self.special_tokens = dict(special.names)
        flagged = {token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special}
        self.special_ids = frozenset(flagged | special.ids)
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.chat_templates = dict(files.chat_templates)
        self._pieces = Pieces(backend, self.special_ids)
        self._chat = Chat(backend, files, self.special_tokens, self.special_ids)

    @classmethod
    def from_files(cls, files: TextFiles) -> Tokenizer:
        """The tokenizer that ``files`` describe.

        Raises:
            TokenizerError, ConfigError: as `load_tokenizer`.
        """
        where = None if files.where is None else files.where / "tokenizer.json"
        return cls(open_backend(files.tokenizer, where), files)

    @property
    def chat_template(self) -> str | None:
        """The source of the chat template used by default; None when the checkpoint has none."""
        return self.chat_templates.get(DEFAULT_TEMPLATE)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token's form and its id, added ones included."""
        vocabulary: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        return vocabulary

    @property
    def can_chat(self) -> bool:
        """Whether conversations can be encoded: with a chat template, or with the vocabulary's known instruction
        format."""
        return self._chat.is_possible

    @property
    def chat_format(self) -> str | None:
        """The format of conversations; None if they cannot be encoded.

        ``"template"``; or ``"instruct v1"``, ``"instruct v3"`` or ``"instruct v7"``, Mistral's ``[INST]`` formats for
        its vocabularies without a template.
        """
        return self._chat.format

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a raw prompt. Literals of control tokens in ``text`` become control tokens.

        Args:
            text: the prompt.
            add_special_tokens: put BOS (and EOS) around it, by the tokenizer's own rules. A text that begins with the
                BOS literal gets no second one.

        Raises:
            TokenizerError: ``text`` cannot be encoded as UTF-8.
        """
        ids = encode(self._backend, text)
        if not add_special_tokens:
            return ids
        prefix, suffix = self._around(ids)
        return prefix + ids + suffix

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        """The ids of `encode`, and for each the number of characters of ``text`` up to its end.

        BOS covers none. A character of several tokens counts for the first of them.

        Raises:
            TokenizerError: ``text`` cannot be encoded as UTF-8.
        """
        ids, ends = encode_with_ends(self._backend, text)
        prefix, suffix = self._around(ids)
        return prefix + ids + suffix, [0] * len(prefix) + ends + [len(text)] * len(suffix)

    def _around(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """The ids to put before and after those of a raw prompt."""
        prefix = [] if ids[: len(self._prefix)] == self._prefix else self._prefix
        suffix = [] if self._suffix and ids[-len(self._suffix) :] == self._suffix else self._suffix
        return prefix, suffix

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ``ids``. Bytes that form no character become U+FFFD.

        An id without a token has no text, as in transformers: a model's logits may have more rows than the tokenizer
        has tokens, and a model may choose one of those.

        Raises:
            TokenizerError: an id is below 0, or 2³² and above.
        """
        plain = self._pieces.with_text(ids)
        if skip_special_tokens:
            plain = [token_id for token_id in plain if token_id not in self.special_ids]
        return self._pieces.decode(plain)

    def detokenizer(self, prompt_ids: Iterable[int] = ()) -> Detokenizer:
        """A streaming decoder of the ids that follow ``prompt_ids``.

        Without a prompt the stream is `decode` of its ids. With one, its text continues the prompt's: a leading space
        of its first word is kept. Give the prompt if the text continues it, and none if an answer begins.
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
        tools: Tools | None = None,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation, with control tokens as their literals; for inspection.

        Use `encode_chat` for ids: in this text, a literal that a user wrote looks like the control token.

        Args:
            messages: ``[{"role": "user", "content": "…"}, …]``. A content may be a list of parts, ``{"type": "text",
                "text": "…"}``: a template that iterates over contents gets the list, any other the texts, joined by
                line ends. A part that is not text is refused.
            tools: functions that the model may call, as JSON schemas in OpenAI's form. If the template does not use
                them, there is a warning (`TemplateWarning`).
            add_generation_prompt: end where the assistant's answer begins.
            chat_template: name of one of the checkpoint's templates, or a template's source.
            variables: further variables of the template, such as ``enable_thinking``.

        Raises:
            ChatTemplateError: there is no template and no known format; the template refuses the conversation (the
                error has its message), is broken, does what the sandbox forbids, or exceeds a bound; a part is not
                text.
        """
        variables = {"add_generation_prompt": add_generation_prompt, **variables}
        return self._chat.render(messages, tools, chat_template, variables)

    def encode_chat(
        self,
        messages: Messages,
        *,
        tools: Tools | None = None,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a conversation. BOS is there if the template writes it, and never twice.

        Every control token was written entirely by the template. Text in ``messages``, ``tools`` and ``variables``
        stays text, whatever the template does to it, even if it contains the literal of a control token, or a part that
        other text completes. If a template mixes its own text with theirs so that the origin is lost, and a literal
        results, the conversation is refused. There are two exceptions. A message's role counts as the template's text,
        if it is a usual one or the template names it (``<|user|>`` contains one). And added tokens that are not marked
        special and that the template looks for (``</think>``) are tokens in messages too.

        Arguments and errors are those of `render_chat`.
        """
        variables = {"add_generation_prompt": add_generation_prompt, **variables}
        ids = self._chat.encode(messages, tools, chat_template, variables)
        return ids[1:] if ids[:2] == [self.bos_id, self.bos_id] else ids
