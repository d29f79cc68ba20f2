"""What a request may ask for, how it ends, and that its errors are its own."""

from __future__ import annotations

import threading
from typing import Any

import mlx.core as mx
import pytest

import core
from core.batching import BatchEvent, scheduler
from core.batching.answer import TimedAnswer
from core.batching.prefill import Reading
from core.errors import CoreError, InsufficientMemoryError, ProcessorError, TokenizerError, UsageError
from core.generation.chooser import Chooser
from core.text import TextFiles, Tokenizer
from tests.batching.models import CONFIG, SCALINGS, check_alone, model, prompt
from tests.text.vocabularies import config as tokens
from tests.text.vocabularies import sentencepiece_json


@pytest.fixture(scope="module")
def lm() -> core.LanguageModel:
    return core.load("demo:mistral", dequantize=True, dtype=mx.float32)


PROMPTS = ["To be, or", "My lord,", "What light through yonder", "O Romeo", "Enter", "Now is the winter"]


def test_text_and_stops_are_those_of_a_stream(lm: core.LanguageModel) -> None:
    options: list[dict[str, Any]] = [
        {"max_tokens": 30, "temperature": 0.0},
        {"max_tokens": 40, "temperature": 0.0, "stop": ["\n"]},
        {"max_tokens": 40, "temperature": 0.0, "stop": ["e", "the "]},
        {"max_tokens": 12, "temperature": 0.0, "logprobs": 3},
        {"max_tokens": 20, "temperature": 0.9, "seed": 4, "top_p": 0.9, "logprobs": 0},
        {"max_tokens": 0, "temperature": 0.0},
    ]
    batch = core.Batch(lm, max_rows=4)
    requests = [batch.submit(text, **each) for text, each in zip(PROMPTS, options, strict=True)]
    events: dict[int, list[BatchEvent]] = {request.id: [] for request in requests}
    for event in batch:
        events[event.request.id].append(event)
    for request, text, each in zip(requests, PROMPTS, options, strict=True):
        chunks = list(lm.stream(text, **each))
        alone = chunks[-1].result
        found = request.result
        assert found is not None
        assert alone is not None
        assert (found.text, found.token_ids, found.prompt_ids) == (alone.text, alone.token_ids, alone.prompt_ids)
        assert (found.finish_reason, found.stopped_by) == (alone.finish_reason, alone.stopped_by)
        assert found.sampling == alone.sampling
        assert (found.logprobs is None) == (alone.logprobs is None)
        assert found.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
        told = [event.chunk for event in events[request.id]]
        assert [(c.text, c.token_id) for c in told if c] == [(c.text, c.token_id) for c in chunks]
        if alone.top_logprobs is not None:
            assert found.top_logprobs is not None
            assert [[i for i, _ in top] for top in found.top_logprobs] == [
                [i for i, _ in t] for t in alone.top_logprobs
            ]


def test_tool_calls_are_those_of_a_stream() -> None:
    tokenizer = Tokenizer.from_files(TextFiles(sentencepiece_json("v7", "metaspace"), tokenizer_config=tokens()))
    built = core.build(CONFIG | {"vocab_size": tokenizer.vocab_size})
    lm = core.LanguageModel(built.model, built.config, tokenizer, None)  # type: ignore[arg-type]
    call = '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}}]</s>'
    said = tokenizer.encode("Let me look." + call, add_special_tokens=False)

    def says(logits: mx.array, context: Any) -> mx.array:
        return mx.where(mx.arange(logits.shape[-1]) == said[context.generated], logits, -mx.inf)

    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
    batch = core.Batch(lm)
    offered: list[tuple[list[dict[str, Any]] | None, int]] = [(tools, 1), (None, 0)]
    requests = [
        batch.submit([{"role": "user", "content": "Weather?"}], tools=each, max_tokens=len(said), processors=[says])
        for each, _ in offered
    ]
    list(batch)
    for request, (each, calls) in zip(requests, offered, strict=True):
        alone = lm.generate(
            [{"role": "user", "content": "Weather?"}], tools=each, max_tokens=len(said), processors=[says]
        )
        assert request.result is not None
        assert request.result.prompt_ids == alone.prompt_ids
        assert request.result.token_ids == alone.token_ids == said
        assert request.result.tool_calls == alone.tool_calls
        assert [call.arguments for call in alone.tool_calls] == [{"city": "Paris"}] * calls
        assert request.result.text == alone.text
        if calls:
            assert alone.text == "Let me look."


@pytest.mark.parametrize("name", ["demo:mistral", "demo:mixtral"])
def test_quantized_demo_models_past_their_windows(name: str) -> None:
    lm = core.load(name, dtype=mx.float32)
    prompts = [[(7 * place + 3 * i) % 1000 for place in range(length)] for i, length in enumerate((3, 60, 75))]
    batch = core.Batch(lm, prefill_chunk=16)
    requests = [batch.submit(ids, max_tokens=14, temperature=0.0) for ids in prompts]
    list(batch)
    for request in requests:
        assert request.result is not None
        assert request.result.token_ids == lm.generate(request.prompt_ids, max_tokens=14, temperature=0.0).token_ids


def test_an_end_of_sequence_token_ends_one_row_and_no_other() -> None:
    first = list(core.generate_tokens(model("full"), prompt(1, 9), max_tokens=12))
    batch = core.Batch(model("full"))
    stops = batch.submit(prompt(1, 9), max_tokens=12, eos=[first[5]])
    goes_on = batch.submit(prompt(1, 9), max_tokens=12)
    list(batch)
    assert stops.result is not None
    assert stops.result.token_ids == first[: first.index(first[5]) + 1]
    assert (stops.result.finish_reason, stops.result.stopped_by) == ("stop", first[5])
    assert goes_on.result is not None
    assert goes_on.result.token_ids == first


def test_the_context_is_a_limit(lm: core.LanguageModel) -> None:
    """The demo model's blocks all have a window; a model without one has as many positions as its config says."""
    batch = core.Batch(lm)
    lm_context = 40
    object.__setattr__(lm, "context", lm_context)
    try:
        with pytest.raises(UsageError, match="no room in the model's context"):
            batch.submit([1] * lm_context, max_tokens=5)
        ends = batch.submit([1] * (lm_context - 3), max_tokens=5)
        fits = batch.submit([1] * (lm_context - 5), max_tokens=5)
        list(batch)
    finally:
        del lm.__dict__["context"]
    assert ends.result is not None
    assert fits.result is not None
    assert (len(ends.result.token_ids), ends.result.finish_reason) == (3, "context")
    assert (len(fits.result.token_ids), fits.result.finish_reason) == (5, "length")


@pytest.mark.parametrize(
    ("ids", "options", "error"),
    [
        ([], {}, UsageError),
        ([61], {}, UsageError),
        (["a"], {}, UsageError),
        ([1], {"max_tokens": -1}, UsageError),
        ([1], {"max_tokens": 1.5}, UsageError),
        ([1], {"temperature": -1.0}, UsageError),
        ([1], {"logprobs": 62}, UsageError),
        ([1], {"logit_bias": {61: 1.0}}, UsageError),
        ([1], {"kv_bits": 8}, UsageError),
        ([1], {"tempreature": 1.0}, UsageError),
        ([1], {"stop": ["x"]}, TokenizerError),
        ([1] * 100, {"max_tokens": 5000}, InsufficientMemoryError),
    ],
)
def test_what_is_refused_is_refused_at_once(ids: Any, options: dict[str, Any], error: type[CoreError]) -> None:
    batch = core.Batch(model("full"), max_bytes=1 << 20)
    runs = batch.submit(prompt(1, 5), max_tokens=6)
    batch.step()
    with pytest.raises(error):
        batch.submit(ids, **options)
    list(batch)
    check_alone("full", runs)


def test_a_failing_processor_harms_only_its_own_request() -> None:
    def fails_later(logits: mx.array, context: Any) -> mx.array:
        if context.generated == 3:
            raise RuntimeError("out of ideas")
        return logits

    def wrong_shape(logits: mx.array, context: Any) -> mx.array:
        return logits[:, :5]

    def forbids_even(logits: mx.array, context: Any) -> mx.array:
        return mx.where(mx.arange(logits.shape[-1]) % 2 == 0, -mx.inf, logits)

    batch = core.Batch(model("full"), max_rows=5)
    before = batch.submit(prompt(1, 5), max_tokens=20)
    later = batch.submit(prompt(2, 5), max_tokens=20, processors=[fails_later])
    wrong = batch.submit(prompt(3, 5), max_tokens=20, processors=[wrong_shape])
    odd = batch.submit(prompt(3, 5), max_tokens=20, processors=[forbids_even])
    after = batch.submit(prompt(4, 5), max_tokens=20)
    events = list(batch)
    for request in (before, after):
        check_alone("full", request)
    assert odd.result is not None
    assert all(token_id % 2 for token_id in odd.result.token_ids)
    for request, said in ((later, "out of ideas"), (wrong, "does not return logits")):
        assert isinstance(request.error, ProcessorError)
        assert said in str(request.error)
        assert [event.error for event in events if event.request is request][-1] is request.error
        assert request.result is None


def test_a_model_that_fails_ends_who_runs_and_nobody_after() -> None:
    broken = False

    class Fragile:
        vocab_size = model("full").vocab_size
        make_cache = staticmethod(model("full").make_cache)
        head = staticmethod(model("full").head)

        @staticmethod
        def modules() -> list[object]:
            return []

        @staticmethod
        def hidden_states(tokens: mx.array, cache: Any = None, lengths: Any = None) -> mx.array:
            if broken:
                raise RuntimeError("the model broke")
            return model("full").hidden_states(tokens, cache, lengths)

    batch = core.Batch(Fragile(), max_rows=3, prefill_chunk=4)
    doomed = [batch.submit(prompt(i, 5), max_tokens=20) for i in range(2)]
    for _ in range(3):
        batch.step()
    doomed.append(batch.submit(prompt(3, 50), max_tokens=20))  # read beside them
    saved = batch.submit(prompt(5, 5), max_tokens=8)
    for _ in range(5):
        batch.step()
    assert batch._scheduler.prompts.rows
    broken = True
    events = batch.step()
    broken = False
    assert {event.request for event in events if event.error} == set(doomed)
    list(batch)
    assert all(isinstance(request.error, RuntimeError) for request in doomed)
    check_alone("full", saved)
    assert batch._scheduler.waiting.rows == batch._scheduler.waiting.nbytes == 0


class Interrupted:
    """A model that is interrupted once, in a pass that only reads prompts."""

    def __init__(self, kind: str) -> None:
        self.model = model(kind)
        self.vocab_size, self.make_cache, self.head = self.model.vocab_size, self.model.make_cache, self.model.head
        self.armed = False

    def modules(self) -> list[object]:
        return []

    def hidden_states(self, tokens: mx.array, cache: Any = None, lengths: Any = None) -> mx.array:
        if self.armed and tokens.shape[1] > 1:
            self.armed = False
            raise KeyboardInterrupt
        return self.model.hidden_states(tokens, cache, lengths)


@pytest.mark.parametrize("steps", range(1, 8))
def test_an_interrupt_while_a_prompt_is_read_fails_it_alone(steps: int) -> None:
    """Also where somebody's last token is on its way, and where others join right after."""
    fragile = Interrupted("state")
    batch = core.Batch(fragile, max_rows=8, prefill_chunk=16)
    runs = [batch.submit(prompt(1, 5), max_tokens=30), batch.submit(prompt(3, 5), max_tokens=4)]
    for _ in range(steps):
        batch.step()
    late = batch.submit(prompt(2, 40), max_tokens=5)
    fragile.armed = True
    with pytest.raises(KeyboardInterrupt):
        batch.step()
    runs += [batch.submit(prompt(4, 1), max_tokens=5), batch.submit(prompt(5, 9), max_tokens=5)]
    list(batch)
    for request in runs:
        check_alone("state", request)
        assert request.result is not None
        assert len(request.result.token_ids) == request.max_tokens
    assert isinstance(late.error, CoreError)
    assert batch._scheduler.waiting.rows == batch._scheduler.waiting.nbytes == 0


def test_memory_that_a_long_prompt_lacks_fails_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_ALLOCATED", 1)
    batch = core.Batch(model("full"), max_rows=8, prefill_chunk=16)
    runs = batch.submit(prompt(1, 5), max_tokens=12)
    for _ in range(4):
        batch.step()
    late = batch.submit(prompt(2, 200), max_tokens=5)

    def refuse(self: Reading, nbytes: int) -> bool:
        raise RuntimeError("[malloc] Unable to allocate")

    with monkeypatch.context() as patch:
        patch.setattr(Reading, "allocate", refuse)
        batch.step()
    list(batch)
    check_alone("full", runs)
    assert isinstance(late.error, RuntimeError)


def test_cancelled_requests_end_with_what_they_have() -> None:
    batch = core.Batch(model("full"), max_rows=2, prefill_chunk=4, prefill_burst=4)
    runs = batch.submit(prompt(1, 3), max_tokens=100)
    while not batch._scheduler.running.rows or batch._scheduler.running.rows[0].submitted < 5:
        batch.step()
    being_read = batch.submit(prompt(2, 200), max_tokens=10)
    queued = batch.submit(prompt(3, 5), max_tokens=10)
    batch.step()
    for request in (runs, being_read, queued):
        request.cancel()
    events = list(batch)
    for request, least in ((runs, 3), (being_read, 0), (queued, 0)):
        assert request.result is not None
        assert str(request.result.finish_reason) == "cancelled"
        assert len(request.result.token_ids) >= least
        assert sum(event.result is not None for event in events if event.request is request) == 1
    check_alone("full", runs)


def test_closing_ends_everything() -> None:
    batch = core.Batch(model("full"), max_rows=2, prefill_chunk=4, prefill_burst=4)
    requests = [batch.submit(prompt(i, 20), max_tokens=100) for i in range(5)]
    for _ in range(9):
        batch.step()
    batch.close()
    assert all(request.done for request in requests)
    assert not batch.pending
    assert batch._scheduler.running.groups.nbytes == 0


def test_threads_submit_and_cancel_while_another_steps() -> None:
    batch = core.Batch(model("full"), max_rows=4)
    made: list[Any] = []

    def owner(number: int) -> None:
        for i in range(12):
            request = batch.submit(prompt(number, 1 + i), max_tokens=6)
            made.append(request)
            if i % 5 == 4:
                request.cancel()

    threads = [threading.Thread(target=owner, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or batch.pending:
        batch.step()
    assert len(made) == 48
    for request in made:
        check_alone("full", request)
    assert len({request.id for request in made}) == 48


def test_first_come_first_served_within_the_memory() -> None:
    """What does not fit now waits, and whoever comes later waits behind it; in the end, all are served."""
    row = core.Batch(model("full"))._scheduler._template.row_bytes(64)
    batch = core.Batch(model("full"), max_rows=10, max_bytes=4 * row)
    requests = [batch.submit(prompt(i, 30), max_tokens=tokens) for i, tokens in enumerate([30, 220, 30, 30, 30])]
    order = []
    for event in batch:
        assert batch._scheduler.waiting.nbytes <= 4 * row
        if event.request not in order:
            order.append(event.request)
    assert order == requests
    for request in requests:
        check_alone("full", request)


@pytest.mark.parametrize("kind", SCALINGS)
def test_models_whose_rotations_depend_on_the_length(kind: str) -> None:
    """Up to a length they do not, and beyond it a request is refused."""
    length = 40 if kind == "dynamic" else 80
    scaled = core.build(CONFIG | {"rope_parameters": SCALINGS[kind], "max_position_embeddings": length}).model
    batch = core.Batch(scaled, prefill_chunk=4, prefill_burst=8, prefix=core.PrefixCache(1 << 20))
    prompts = [prompt(1, 30), prompt(2, 3), prompt(3, 17), prompt(4, 33), prompt(1, 20)]
    requests = [batch.submit(ids, max_tokens=40 - len(ids)) for ids in prompts]
    with pytest.raises(UsageError, match="at most 40 tokens"):
        batch.submit(prompt(1, 30), max_tokens=11)
    list(batch)
    for ids, request in zip(prompts, requests, strict=True):
        assert request.result is not None, request.error
        assert request.result.token_ids == list(core.generate_tokens(scaled, ids, max_tokens=40 - len(ids)))


def test_settings_out_of_range() -> None:
    for name in ("max_rows", "prefill_chunk", "prefill_burst"):
        with pytest.raises(UsageError, match=name):
            core.Batch(model("full"), **{name: 0})


@pytest.mark.parametrize("after", [1, 2, 4])
def test_an_interrupt_loses_no_request_silently(after: int) -> None:
    """Wherever in the reading of a step's tokens it comes."""
    batch = core.Batch(model("full"))
    requests = [batch.submit(prompt(length, length), max_tokens=6) for length in (3, 5)]
    add = TimedAnswer.add
    calls = iter(range(100))

    def interrupted(self: TimedAnswer, token: Any) -> Any:
        if next(calls) == after:
            raise KeyboardInterrupt
        return add(self, token)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TimedAnswer, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(batch)
    assert batch.pending
    assert {event.request for event in batch if event.error} == set(requests)
    for request in requests:
        assert request.done
        assert "interrupted" in str(request.error)
    again = batch.submit(prompt(3, 3), max_tokens=6)
    list(batch)
    check_alone("full", again)


def test_rows_that_cannot_join_leave_nothing_behind() -> None:
    """The device's memory may run out at any row."""
    batch = core.Batch(model("full"))
    requests = [batch.submit(prompt(length, 4), max_tokens=6) for length in (3, 5, 7)]
    join = Chooser.join
    calls = iter(range(100))

    def fails(self: Chooser, *args: Any) -> None:
        if next(calls) == 1:
            raise RuntimeError("out of memory")
        join(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chooser, "join", fails)
        list(batch)
    assert [str(request.error) for request in requests] == ["out of memory"] * 3
    assert (batch._scheduler.waiting.rows, batch._scheduler.waiting.nbytes) == (0, 0)
    again = batch.submit(prompt(3, 3), max_tokens=6)
    list(batch)
    check_alone("full", again)
    assert batch._scheduler.running.groups.places == []


@pytest.mark.parametrize("longer", [1, 3, 9])
def test_a_failing_step_fails_those_too_that_wait_for_their_last_token(longer: int) -> None:
    """They have left the rows by then, so that no later step would tell of them."""
    for fails_at in range(1, 9):
        decoder = model("full")
        batch = core.Batch(decoder)
        requests = [batch.submit(prompt(2, 4), max_tokens=count) for count in (4, 4 + longer)]
        head, calls = type(decoder).head, iter(range(100))

        def fails(self: Any, x: mx.array, head: Any = head, calls: Any = calls, fails_at: int = fails_at) -> mx.array:
            if next(calls) == fails_at:
                raise RuntimeError("out of memory")
            return head(self, x)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(decoder), "head", fails)
            list(batch)
        assert all(request.done for request in requests)
        assert (batch._scheduler.waiting.rows, batch._scheduler.waiting.nbytes) == (0, 0)


def test_an_interrupt_while_prompts_are_read_repeats_no_tokens() -> None:
    """It comes when the device has been given a chunk: the cache has its tokens then."""
    batch = core.Batch(model("full"), prefill_chunk=4, prefill_burst=4)
    first = batch.submit(prompt(3, 20), max_tokens=6)
    later = batch.submit(prompt(5, 20), max_tokens=6)
    give = mx.async_eval

    def interrupted(*arrays: Any) -> None:
        give(*arrays)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mx, "async_eval", interrupted)
        with pytest.raises(KeyboardInterrupt):
            batch.step()
    list(batch)
    assert "interrupted" in str(first.error)
    check_alone("full", later)
    assert (batch._scheduler.waiting.rows, batch._scheduler.waiting.nbytes) == (0, 0)


def test_options_that_are_of_a_stream_are_refused_by_name(lm: core.LanguageModel) -> None:
    batch = core.Batch(lm)
    for options in ({"history": [1]}, {"progress": print}, {"cache": lm.make_cache()}, {"kv_bits": 8}):
        with pytest.raises(UsageError, match=repr(next(iter(options)))):
            batch.submit("To be", **options)


def test_arrays_of_ids_are_prompts(lm: core.LanguageModel) -> None:
    for source in (lm, lm.model):
        batch = core.Batch(source)
        one, two = (batch.submit(ids, max_tokens=4, temperature=0.0) for ids in ([5, 6, 7], mx.array([5, 6, 7])))
        list(batch)
        assert one.result is not None
        assert two.result is not None
        assert one.result.token_ids == two.result.token_ids


def test_a_bounded_cache_has_no_context(lm: core.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a stream."""
    monkeypatch.setitem(vars(lm), "context", 12)
    alone = lm.generate("To be", max_tokens=30, temperature=0.0, max_kv_tokens=16)
    batch = core.Batch(lm, max_kv_tokens=16)
    request = batch.submit("To be", max_tokens=30, temperature=0.0)
    list(batch)
    assert request.result is not None
    assert (request.result.finish_reason, len(request.result.token_ids)) == ("length", 30)
    assert request.result.text == alone.text
    limited = core.Batch(lm).submit("To be", max_tokens=30)
    assert limited.max_tokens < 12
