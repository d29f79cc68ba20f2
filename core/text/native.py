"""The tokenizer of a checkpoint in Mistral's own format, ``tekken.json``, through mistral-common.

Knows mistral-common's ``MistralTokenizer`` and the interface of `Tokenizer`; knows no models. mistral-common is an
extra of the package, imported by the first tokenizer of this kind.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from itertools import accumulate
from operator import index
from pathlib import Path
from types import MappingProxyType
from typing import Any

from core.errors import ChatTemplateError, TokenizerError
from core.text.chat import Messages, Tools

FILE = "tekken.json"
_PACKAGE = "mistral-common"


class NativeTokenizer:
    """Text and conversations to token ids and back, with the attributes and methods of `core.text.Tokenizer`.

    It has no chat templates: conversations are put together by mistral-common, which refuses what Mistral's models do
    not understand. Literals of control tokens stay text everywhere, in raw prompts too.

    Raises:
        TokenizerError: mistral-common is not installed, or cannot read the file.
    """

    chat_templates: Mapping[str, str] = MappingProxyType({})
    chat_template: str | None = None
    can_chat = True

    def __init__(self, path: Path) -> None:
        self._where = path
        self._mistral = _open(path)
        self._inner = self._mistral.instruct_tokenizer.tokenizer
        self.bos_id: int | None = int(self._inner.bos_id)
        self.eos_ids = frozenset({int(self._inner.eos_id)})
        self.special_ids = frozenset(map(int, self._inner.special_ids))
        self.special_tokens = {"bos_token": "<s>", "eos_token": "</s>"}
        self.vocab_size: int = self._inner.n_words

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a raw prompt, with BOS before it.

        Raises:
            TokenizerError: ``text`` cannot be encoded as UTF-8.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(f"the text cannot be encoded as UTF-8: {error}") from None
        return list(self._inner.encode(text, bos=add_special_tokens, eos=False))

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int]]:
        """The ids of `encode`, and how many characters of ``text`` each of them and those before it stand for.

        BOS stands for none. A character of several tokens counts for the first of them.

        Raises:
            TokenizerError: ``text`` cannot be encoded as UTF-8.
        """
        ids = self.encode(text)
        data = text.encode()
        # Characters that begin before each byte: every byte but those that go on with one begins one.
        begun = [0, *accumulate(byte & 0xC0 != 0x80 for byte in data)]
        return ids, [begun[stop] for stop in accumulate(len(self.bytes_of(token_id)) for token_id in ids)]

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token's form and its id; bytes that make no character are escaped, so that no two forms are equal."""
        return {self.bytes_of(i, False).decode("utf-8", "surrogateescape"): i for i in range(self.vocab_size)}

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ``ids``. Bytes that make no character become U+FFFD.

        Raises:
            TokenizerError: no token has one of the ids.
        """
        pieces = [self.bytes_of(token_id, skip_special_tokens) for token_id in ids]
        return b"".join(pieces).decode("utf-8", "replace")

    def detokenizer(self, prompt_ids: Iterable[int] = ()) -> NativeDetokenizer:
        """A streaming decoder of the ids that follow ``prompt_ids``."""
        return NativeDetokenizer(self, prompt_ids)

    def bytes_of(self, token_id: int, skip_special_tokens: bool = True) -> bytes:
        """What a token adds to a text: its bytes; a control token's literal, or nothing.

        Raises:
            TokenizerError: no token has this id.
        """
        if not 0 <= index(token_id) < self.vocab_size:
            raise TokenizerError(f"no token has the id {token_id}", expected=f"0 to {self.vocab_size - 1}")
        data: bytes = self._inner.id_to_byte_piece(
            index(token_id), _policy("IGNORE" if skip_special_tokens else "KEEP")
        )
        return data

    def id_of(self, token: str) -> int | None:
        """The id of a token's text; None when there is none."""
        wanted = token.encode()
        return next((i for i in range(self.vocab_size) if self.bytes_of(i, False) == wanted), None)

    def token_of(self, token_id: int) -> str:
        """The token's text; bytes that make no character become U+FFFD."""
        return self.bytes_of(token_id, False).decode("utf-8", "replace")

    def render_chat(self, messages: Messages, **options: Any) -> str:
        """The text of a conversation, control tokens as their literals: for reading."""
        return self.decode(self.encode_chat(messages, **options), skip_special_tokens=False)

    def encode_chat(
        self,
        messages: Messages,
        *,
        tools: Tools | None = None,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a conversation, as mistral-common makes them.

        Raises:
            ChatTemplateError: mistral-common refuses the conversation, or a template is asked for.
        """
        from mistral_common.protocol.instruct.request import ChatCompletionRequest

        if chat_template is not None or variables or not add_generation_prompt:
            raise ChatTemplateError(
                "Mistral's own tokenizer has no chat templates, and its prompts end where the answer begins",
                where=self._where,
                hint="Put the tokenizer.json and the template of the model's Hugging Face form beside it.",
            )
        make: Any = ChatCompletionRequest  # it validates what it is given
        try:
            request = make(messages=list(messages), tools=None if tools is None else list(tools))
            return list(self._mistral.encode_chat_completion(request).tokens)
        except Exception as error:  # its own errors, and pydantic's
            problem = f"{_PACKAGE} refuses the conversation: {_brief(error)}"
            raise ChatTemplateError(problem, where=self._where) from error


class NativeDetokenizer:
    """Streams the text of ids added one by one; all of it joined is ``NativeTokenizer.decode`` of the ids.

    Every token is bytes: a character is shown once its last byte has come.
    """

    def __init__(self, tokenizer: NativeTokenizer, prompt_ids: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._utf8.decode(b"".join(map(tokenizer.bytes_of, prompt_ids)))

    def add(self, token_id: int) -> str:
        """Takes the next id; returns the text that has become certain, which may be empty."""
        return self._utf8.decode(self._tokenizer.bytes_of(token_id))

    def finish(self) -> str:
        """The rest of the text; bytes that make no character become U+FFFD."""
        return self._utf8.decode(b"", final=True)


def _open(path: Path) -> Any:
    try:
        from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    except ImportError as error:
        raise TokenizerError(
            f"reading Mistral's own tokenizer needs {_PACKAGE}, which is not installed",
            where=path,
            hint='pip install "corelm[mistral]", or put the tokenizer.json of the Hugging Face form beside it.',
        ) from error
    try:
        return MistralTokenizer.from_file(str(path))
    except Exception as error:
        problem = f"{_PACKAGE} cannot read this tokenizer: {_brief(error)}"
        raise TokenizerError(problem, where=path, hint="Download the file again.") from error


def _brief(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _policy(name: str) -> Any:
    from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy

    return SpecialTokenPolicy[name]
