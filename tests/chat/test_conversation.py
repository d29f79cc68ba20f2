"""Conversations: answers with a kept cache are those without, and each turn costs what is new in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import core
import core.generation.loop
from core.chat import PLAIN_TEMPLATE, Conversation
from core.errors import ChatTemplateError, ConversationError, TokenizerError, UsageError
from core.language_model import LanguageModel
from tests.fixtures import oracle

from .conftest import APPENDING, REWRITING

QUESTIONS = ["Once upon a time", "Tom ran to the tree. And?", "The end", "ROMEO:\nWho are you?", "What then?\n"]


@pytest.fixture
def processed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each call of the model, prompts and single steps, without padding."""
    seen: list[int] = []
    hidden_states = core.nn.Decoder.hidden_states

    def counting(self: Any, tokens: mx.array, cache: Any = None, lengths: Any = None) -> mx.array:
        seen.append(tokens.shape[1] if lengths is None else lengths[0])
        return hidden_states(self, tokens, cache, lengths)

    monkeypatch.setattr(core.nn.Decoder, "hidden_states", counting)
    return seen


def talk(lm: LanguageModel, template: str, **options: Any) -> Conversation:
    return Conversation(lm, chat_template=template, temperature=0, max_tokens=10, **options)


def whole(chat: Conversation) -> list[int]:
    """The prompt of the last answer, from a conversation that ends before it."""
    before = Conversation(chat.lm, messages=chat.messages[:-1], chat_template=chat._chat_template)
    return before.prompt_ids()


def common_prefix(one: list[int], other: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@pytest.mark.parametrize("name", ["sliding", "full"])
def test_a_turn_processes_what_is_new(request: Any, processed: list[int], name: str) -> None:
    """The prompt grows with each turn; what the model is given of it is what its cache does not hold.

    An answer need not be in the tokens into which its text is encoded; then its rest is new, and where the window has
    moved on, everything is.
    """
    chat = talk(request.getfixturevalue(name), APPENDING, system="A story.")
    known: list[int] = []
    only_new = 0
    for question in QUESTIONS:
        processed.clear()
        result = chat.generate(question)
        ids = whole(chat)
        common = common_prefix(ids, known)
        if name == "sliding" and common < len(known) and len(result.prompt_ids) == len(ids):
            common = 0
        assert processed[0] == len(result.prompt_ids) == result.stats.prompt_tokens == len(ids) - common
        assert ids[common:] == result.prompt_ids
        assert set(processed[1:]) <= {1}
        only_new += 0 < common == len(known)
        known = ids + result.token_ids[:-1]
        assert chat.cached_tokens == len(known)
    assert only_new >= 2


def test_history_that_the_template_rewrites_is_processed_from_there(full: LanguageModel) -> None:
    chat = talk(full, REWRITING, system="A story.")
    first = chat.generate(QUESTIONS[0])
    second = chat.generate(QUESTIONS[1])
    ids = whole(chat)
    common = common_prefix(first.prompt_ids, ids)
    assert 0 < common < len(first.prompt_ids)
    assert second.prompt_ids == ids[common:]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from(QUESTIONS)),
        st.tuples(st.just("stop"), st.integers(1, 9)),
        st.tuples(st.sampled_from(["undo", "regenerate", "reset", "fail"]), st.none()),
        st.tuples(st.just("system"), st.sampled_from([None, "Be brief.", "A long story about Tom and the tree."])),
    ),
    min_size=2,
    max_size=5,
)


def step(chat: Conversation, kind: str, value: Any) -> None:
    if kind == "ask":
        chat.generate(value)
    elif kind == "stop":
        stream = chat.stream("Go on.")
        for _ in range(value):
            next(stream)
        stream.close()  # type: ignore[attr-defined]
    elif kind == "system":
        chat.system = value
    elif kind == "fail":
        before = chat.messages
        with pytest.raises(UsageError):
            chat.generate("x", temperature=-1)
        assert chat.messages == before
    elif kind == "regenerate":
        if chat.messages and chat.messages[-1]["role"] == "assistant":
            list(chat.regenerate())
    else:
        getattr(chat, kind)()


@settings(max_examples=6)
@given(steps=STEPS, name=st.sampled_from(["sliding", "full"]), template=st.sampled_from([APPENDING, REWRITING]))
def test_answers_are_those_without_reuse(request: Any, steps: list[Any], name: str, template: str) -> None:
    """Whatever was said, stopped, taken back and made anew before; also where a window cannot go back."""
    lm = request.getfixturevalue(name)
    kept, anew = talk(lm, template), talk(lm, template, reuse=False)
    for kind, value in [*steps, ("ask", QUESTIONS[0])]:
        step(kept, kind, value)
        step(anew, kind, value)
        assert kept.messages == anew.messages
    assert kept.result is not None
    assert anew.result is not None
    assert kept.result.token_ids == anew.result.token_ids
    assert len(anew.result.prompt_ids) == len(whole(anew))


def test_a_stopped_answer_is_kept_as_far_as_it_came(full: LanguageModel) -> None:
    chat = talk(full, APPENDING)
    stream = chat.stream(QUESTIONS[0])
    said = "".join(next(stream).text for _ in range(5))
    stream.close()  # type: ignore[attr-defined]
    assert said
    assert chat.messages[1] == {"role": "assistant", "content": said, "interrupted": True}
    assert full.tokenizer is not None
    shown = full.tokenizer.decode(chat.prompt_ids())
    assert said in shown
    assert "interrupted" not in shown


def test_a_stream_that_was_never_begun_changes_nothing(full: LanguageModel) -> None:
    chat = talk(full, APPENDING)
    stream = chat.stream("x")
    assert chat.messages == []
    stream.close()  # type: ignore[attr-defined]
    assert chat.messages == []


def test_one_answer_at_a_time(full: LanguageModel) -> None:
    """Two would write into one cache; and what is asked is asked of the messages as they then were."""
    chat = talk(full, APPENDING)
    chat.generate("Hello")
    first, second = chat.stream("One"), chat.stream("Two")
    next(first)
    with pytest.raises(ConversationError, match="another answer is under way"):
        next(second)
    first.close()  # type: ignore[attr-defined]
    said = chat.messages
    late = chat.stream("Three")
    chat.add("Four")
    with pytest.raises(ConversationError, match="has changed since"):
        next(late)
    assert chat.messages == [*said, {"role": "user", "content": "Four"}]
    again = talk(full, APPENDING, messages=chat.messages)
    assert chat.generate().token_ids == again.generate().token_ids


def test_an_empty_answer_takes_the_question_back(full: LanguageModel) -> None:
    chat = talk(full, APPENDING)
    chat.generate("Hello")
    before = chat.messages
    assert chat.generate("x", max_tokens=0).text == ""
    assert chat.messages == before
    assert list(chat.regenerate(max_tokens=0))
    assert chat.messages == before


def test_an_interruption_while_the_prompt_is_read(full: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The question is taken back, and the cache, which holds half of it, is not taken for anything else."""
    prefill = core.generation.loop._prefill
    monkeypatch.setattr(
        "core.generation.loop._prefill",
        lambda model, prompt, cache, chunk, *more: prefill(model, prompt, cache, 16, *more),
    )

    def interrupt(done: int, total: int) -> None:
        assert 0 < done < total
        raise KeyboardInterrupt

    chat = talk(full, APPENDING)
    chat.generate("Hello")
    before = chat.messages
    with pytest.raises(KeyboardInterrupt):
        list(chat.stream("a " * 20, progress=interrupt))
    assert chat.messages == before
    again = talk(full, APPENDING, messages=before)
    assert chat.generate("And?").token_ids == again.generate("And?").token_ids


def test_undo_takes_turns_and_says_which(full: LanguageModel) -> None:
    chat = talk(full, APPENDING, system="s")
    for question in QUESTIONS[:2]:
        chat.generate(question)
    assert chat.undo() == {"role": "user", "content": QUESTIONS[1]}
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant"]
    assert chat.undo() == {"role": "user", "content": QUESTIONS[0]}
    assert chat.undo() is None
    assert chat.messages == [{"role": "system", "content": "s"}]


def test_regenerating_with_another_seed(full: LanguageModel) -> None:
    chat = Conversation(full, chat_template=APPENDING, temperature=1.5, seed=1, max_tokens=20)
    first = chat.generate("Hello").text
    assert "".join(chunk.text for chunk in chat.regenerate()) == first
    assert "".join(chunk.text for chunk in chat.regenerate(seed=2)) != first
    assert len(chat.messages) == 2
    with pytest.raises(ConversationError, match="no answer to regenerate"):
        chat.reset() or chat.regenerate()


def test_chunks_and_result_say_the_same(full: LanguageModel) -> None:
    chat = talk(full, APPENDING)
    chunks = list(chat.stream("Hello"))
    assert chunks[-1].result is chat.result
    assert chat.result is not None
    assert "".join(chunk.text for chunk in chunks) == chat.result.text == chat.messages[-1]["content"]


def test_an_answer_begins_without_the_space_that_joins_words(full: LanguageModel) -> None:
    """The vocabulary puts a space before every word; the text of ids by themselves has none."""
    chat = talk(full, "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
    result = chat.generate("Once upon a time, there was a")
    assert full.tokenizer is not None
    continued = full.generate("Once upon a time, there was a", temperature=0, max_tokens=10)
    assert continued.token_ids == result.token_ids
    assert continued.text == " " + result.text
    assert result.text == full.tokenizer.decode(result.token_ids)


def test_a_full_context_leaves_out_the_oldest_turns(sliding: LanguageModel) -> None:
    """The prompt and the answer stay within the context; what is left out is turns, and the user is told."""
    chat = talk(sliding, APPENDING, system="Be brief.", context=80)
    left_out = []
    assert sliding.tokenizer is not None
    for number in range(9):
        result = chat.generate(f"Question {number}?")
        ids = whole_sent(chat)
        assert len(ids) + len(result.token_ids) <= 80
        text = sliding.tokenizer.decode(ids)
        assert text.startswith("systemBe brief.Question ")
        assert text.endswith(f"Question {number}?")
        left_out.append(chat.left_out)
    assert left_out == sorted(left_out)
    assert left_out[-1] > 0
    assert all(count % 2 == 0 for count in left_out)
    assert 2 <= len(set(left_out)) < 6  # not at every turn
    assert len(chat.messages) == 19  # nothing is lost


def test_a_full_context_stops(sliding: LanguageModel) -> None:
    chat = talk(sliding, APPENDING, system="Be brief.", context=100, context_policy="stop")

    def ask(times: int) -> None:
        for number in range(times):
            chat.generate(f"Question {number}?")

    ask(2)
    with pytest.raises(ConversationError, match="longer than the model's context"):
        ask(10)
    assert chat.left_out == 0
    assert len(chat.messages) % 2 == 1  # the question that did not fit is taken back
    chat.undo()
    chat.generate("?")  # there is room again


def whole_sent(chat: Conversation) -> list[int]:
    sent = chat.messages[:1] + chat.messages[1 + chat.left_out : -1]
    return Conversation(chat.lm, messages=sent, chat_template=APPENDING).prompt_ids()


@pytest.mark.parametrize("choice", ["drop-oldest", "stop"])
def test_a_message_longer_than_the_context(sliding: LanguageModel, choice: Any) -> None:
    chat = talk(sliding, APPENDING, context=100, context_policy=choice)
    chat.generate("Hello")
    before = chat.messages
    with pytest.raises(ConversationError, match="longer than the model's context"):
        chat.generate("word " * 100)
    assert chat.messages == before


def test_saved_and_loaded(full: LanguageModel, tmp_path: Path) -> None:
    chat = talk(full, APPENDING, system="Écris.")
    chat.generate("Hello")
    chat.save(tmp_path / "chat.json")
    loaded = talk(full, APPENDING).load(tmp_path / "chat.json")
    assert loaded.messages == chat.messages
    assert loaded.system == "Écris."
    assert loaded.generate("And?").token_ids == chat.generate("And?").token_ids


def test_a_file_that_is_no_conversation_changes_nothing(full: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    chat = talk(full, APPENDING, system="s", messages=[{"role": "user", "content": "x"}])
    before = chat.messages
    with pytest.raises(ConversationError, match="holds no messages"):
        chat.load(tmp_path / "x.json")
    assert chat.messages == before


def test_the_plain_template(sliding: LanguageModel) -> None:
    chat = Conversation(sliding, system="ACT I", chat_template=PLAIN_TEMPLATE)
    chat.add("ROMEO:\nWho?")
    assert sliding.tokenizer is not None
    assert chat.prompt_ids() == sliding.tokenizer.encode("ACT I\n\nROMEO:\nWho?\n\n")


def test_refused(full: LanguageModel) -> None:
    with pytest.raises(ChatTemplateError, match="has no chat template"):
        Conversation(full).generate("x")
    with pytest.raises(ConversationError, match="nothing to answer"):
        talk(full, APPENDING).generate()
    with pytest.raises(UsageError, match="expected drop-oldest, stop"):
        talk(full, APPENDING, context_policy="forget")
    with pytest.raises(UsageError, match="a system prompt of their own"):
        talk(full, APPENDING, system="a", messages=[{"role": "system", "content": "b"}])
    with pytest.raises(ConversationError, match="message 1 of 1: has no content"):
        talk(full, APPENDING).add({"role": "user"})
    with pytest.raises(TokenizerError, match="needs a tokenizer"):
        Conversation(core.load(oracle("mistral_swa8"), tokenizer=False))


def test_a_model_whose_keys_depend_on_the_length_starts_again(
    full: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.chat.conversation.depends_on_length", lambda model: True)
    chat = talk(full, APPENDING)
    for question in QUESTIONS[:2]:
        result = chat.generate(question)
        assert result.prompt_ids == whole(chat)
