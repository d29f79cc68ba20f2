"""``NativeTokenizer``: Mistral's own tokenizer files, ``tekken.json`` or ``tokenizer.model.v*``, read by
mistral-common.

It has the interface of `Tokenizer`. mistral-common is an extra of the package, imported by the first tokenizer of this
kind.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping
from itertools import accumulate
from operator import index
from pathlib import Path
from types import MappingProxyType
from typing import Any

from core.checkpoint import parse_object, read_local
from core.errors import ChatTemplateError, TokenizerError, first_line
from core.text.chat import Tools
from core.text.content import Messages, checked_conversation
from core.text.native_pieces import Pieces, SentencePieces, TekkenPieces
from core.text.values import given

_TEKKEN, _SENTENCEPIECE = "tekken.json", "*.model.v[0-9]*"
_MAX_TOKENS = 10_000_000
_PACKAGE = "mistral-common"


def find_native(directory: Path) -> Path | None:
    """Mistral's own tokenizer file, ``tekken.json`` before SentencePiece's; None if there is none.

    Raises:
        TokenizerError: there are several SentencePiece files, and no rule to choose one.
    """
    if (directory / _TEKKEN).is_file():
        return directory / _TEKKEN
    found = sorted(path for path in directory.glob(_SENTENCEPIECE) if path.is_file())
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise TokenizerError("holds several tokenizers", where=directory, found=names, hint="Keep the model's own.")
    return found[0] if found else None


class NativeTokenizer:
    """Text and conversations to token ids and back, with the attributes and methods of `core.text.Tokenizer`.

    It has no chat templates: mistral-common formats conversations, and refuses those that Mistral's models were not
    trained for. Literals of control tokens stay text everywhere, in raw prompts too.

    Raises:
        TokenizerError: mistral-common is not installed, or cannot read the file.
    """

    chat_templates: Mapping[str, str] = MappingProxyType({})
    chat_template: str | None = None
    can_chat = True
    chat_format = "mistral-common"

    def __init__(self, path: Path) -> None:
        self._where = path
        self._mistral = _open(path)
        self._inner = self._mistral.instruct_tokenizer.tokenizer
        self._pieces: Pieces = TekkenPieces(self._inner) if path.name == _TEKKEN else SentencePieces(self._inner)
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
        """The ids of `encode`, and for each the number of characters of ``text`` up to its end.

        BOS covers none. A character of several tokens counts for the first of them.

        Raises:
            TokenizerError: ``text`` cannot be encoded as UTF-8.
        """
        ids = self.encode(text)
        # Number of characters that begin before each byte; a byte begins one unless it is a UTF-8 continuation byte.
        begun = list(accumulate((int(byte & 0xC0 != 0x80) for byte in text.encode()), initial=0))
        ahead = int(self.leading_space)
        stops = accumulate(len(self.bytes_of(token_id)) for token_id in ids)
        ends = [begun[min(max(0, stop - ahead), len(begun) - 1)] for stop in stops]
        return ids, [*ends[:-1], len(text)]  # a literal ▁ in the text is read as a space, which has fewer bytes

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token's form and its id."""
        return {self._pieces.form_of(token_id): token_id for token_id in range(self.vocab_size)}

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ``ids``. Bytes that form no character become U+FFFD.

        An id above the tokenizer's has no text: a model's logits may have more rows than there are tokens.

        Raises:
            TokenizerError: an id is below 0, or 2³² and above.
        """
        stream = NativeDetokenizer(self, skip_special_tokens=skip_special_tokens)
        return "".join(map(stream.add, ids)) + stream.finish()

    def detokenizer(self, prompt_ids: Iterable[int] = ()) -> NativeDetokenizer:
        """A streaming decoder of the ids that follow ``prompt_ids``."""
        return NativeDetokenizer(self, prompt_ids)

    def bytes_of(self, token_id: int, skip_special_tokens: bool = True) -> bytes:
        """The bytes that a token adds to a text. For a control token: its literal, or nothing.

        Raises:
            TokenizerError: no token has this id.
        """
        if not 0 <= index(token_id) < self.vocab_size:
            raise TokenizerError(f"no token has the id {token_id}", expected=f"0 to {self.vocab_size - 1}")
        if token_id not in self.special_ids:
            return self._pieces.bytes_of(index(token_id))
        return b"" if skip_special_tokens else self._pieces.form_of(index(token_id)).encode()

    @property
    def leading_space(self) -> bool:
        """Whether the first token of a text adds a space that the text does not have."""
        return self._pieces.leading_space

    def id_of(self, token: str) -> int | None:
        """The id of a token's text; None when there is none."""
        wanted = token.encode()
        return next((i for i in range(self.vocab_size) if self.bytes_of(i, False) == wanted), None)

    def token_of(self, token_id: int) -> str:
        """The token's text; bytes that form no character become U+FFFD."""
        return self.bytes_of(token_id, False).decode("utf-8", "replace")

    def render_chat(self, messages: Messages, **options: Any) -> str:
        """The text of a conversation, with control tokens as their literals; for inspection."""
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
            ChatTemplateError: mistral-common refuses the conversation; a message has a part that is not text (which
                mistral-common would fetch or open); or a template is asked for.
        """
        from mistral_common.protocol.instruct.request import ChatCompletionRequest

        if chat_template is not None or variables or not add_generation_prompt:
            raise ChatTemplateError(
                "Mistral's own tokenizer has no chat templates, and its prompts end where the answer begins",
                where=self._where,
                hint="Put the tokenizer.json and the template of the model's Hugging Face form beside it.",
            )
        plain = checked_conversation(messages)
        try:
            json.dumps(given([list(plain), tools]), ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(f"the conversation cannot be encoded as UTF-8: {error}", where=self._where) from None
        make: Any = ChatCompletionRequest  # it validates what it is given
        try:
            request = make(messages=list(plain), tools=None if tools is None else list(tools))
            return list(self._mistral.encode_chat_completion(request).tokens)
        except Exception as error:  # its own errors, and pydantic's
            problem = f"{_PACKAGE} refuses the conversation: {first_line(error)}"
            raise ChatTemplateError(problem, where=self._where) from error


class NativeDetokenizer:
    """Streams the text of ids added one by one; all of it joined is ``NativeTokenizer.decode`` of the ids.

    Every token is bytes: a character is returned with its last byte.
    """

    def __init__(
        self, tokenizer: NativeTokenizer, prompt_ids: Iterable[int] = (), *, skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._begins = tokenizer.leading_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token_id in prompt_ids:
            self.add(token_id)

    def add(self, token_id: int) -> str:
        """Adds the next id; returns the text that has become final, which may be empty.

        An id above the tokenizer's has no text.

        Raises:
            TokenizerError: the id is below 0, or 2³² and above.
        """
        if self._tokenizer.vocab_size <= index(token_id) < 2**32:
            return ""
        data = self._tokenizer.bytes_of(token_id, self._skip)
        if self._begins and token_id not in self._tokenizer.special_ids:
            self._begins = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def finish(self) -> str:
        """The rest of the text; bytes that form no character become U+FFFD."""
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
    data = read_local(path, error=TokenizerError)
    if path.name == _TEKKEN:
        _check_sizes(parse_object(data or b"", where=str(path), error=TokenizerError), path)
    try:
        return MistralTokenizer.from_file(str(path))
    except Exception as error:
        problem = f"{_PACKAGE} cannot read this tokenizer: {first_line(error)}"
        raise TokenizerError(problem, where=path, hint="Download the file again.") from error


def _check_sizes(tekken: Mapping[str, object], path: Path) -> None:
    """Refuses numbers of tokens with which mistral-common would fill the memory."""
    config = tekken.get("config")
    for key in ("default_vocab_size", "default_num_special_tokens"):
        size = config.get(key) if isinstance(config, Mapping) else None
        if not isinstance(size, int) or not 0 <= size <= _MAX_TOKENS:
            raise TokenizerError(
                f"config.{key} is not a number of tokens",
                where=path,
                expected=f"0 to {_MAX_TOKENS:,}",
                found=repr(size)[:40],
                hint="Download the file again.",
            )
