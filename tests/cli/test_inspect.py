"""``corelm inspect SOURCE``: facts, plan and exit code, as text, as a table and as JSON."""

from __future__ import annotations

import dataclasses
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import core
from core.checkpoint import open_checkpoint
from core.cli.inspection import CheckpointFacts, Inspection, Key, PlanFacts
from core.kernels.device import cpu_sources
from tests.checkpoint.sparse import MIXTRAL_8X7B, write_mixtral_8x7b
from tests.cli.checkpoints import quantized, with_chat_template, with_header
from tests.cli.conftest import ROOT, Outcome, Run
from tests.fixtures import STORIES, STORIES_SHARDED, oracle
from tests.fixtures.foreign import gptq, write_foreign
from tests.fixtures.layouts import write_layout
from tests.fixtures.variants import REMOVED, Tensors, variant
from tests.loading.damage import DAMAGES

MISTRAL, MIXTRAL = oracle("mistral_swa8"), oracle("mixtral_swa8")
V_PROJ = "model.layers.1.self_attn.v_proj"

MIXTRAL_REPORT = """\
SOURCE

checkpoint
  model type      mixtral (MixtralForCausalLM)
  weights         model.safetensors
  tensors         65, 447,808 parameters, 1.71 MiB
  stored as       F32 (65 tensors, 1.71 MiB)
  quantization    none
  tokenizer       none: core.load(…, tokenizer=False), generate --ids
  chat template   none

plugin
  loaded by       plugins.mixtral (corelm VERSION, builtin)
  file            ROOT/plugins/mixtral/__init__.py

plan
  layout          hf
  in memory       1.71 MiB, 447,808 parameters
  computes in     float32 on DEVICE
  cache           256 B a token, 2.00 KiB at the full context of 512, window 8
  fused           layers.*.self_attn.qkv_proj = q_proj + k_proj + v_proj (2 times)
  fused           layers.*.block_sparse_moe.experts.gate_up_proj = w1 + w3, 8 stacked (2 times)
  fused           layers.*.block_sparse_moe.experts.down_proj = w2, 8 stacked (2 times)
  memory          fits: 1.71 MiB of MEMORY, with a cache of 512 tokens
  unread keys     none
  missing         none
  unexpected      none
  mismatched      none
"""


def masked(text: str) -> str:
    """A report without what differs between machines."""
    text = text.replace(str(ROOT), "ROOT").replace(f"ROOT/{MIXTRAL.relative_to(ROOT)}", "SOURCE")
    text = re.sub(r"\(corelm [^,]+,", "(corelm VERSION,", text)
    text = re.sub(r"(computes in +\w+) on .*", r"\1 on DEVICE", text)
    text = re.sub(r"\n  products by +\w.*", "", text)
    return re.sub(r"of [\d.]+ [GT]iB,", "of MEMORY,", text)


def inspect_json(corelm: Run, *arguments: str | Path) -> tuple[Outcome, dict[str, Any]]:
    outcome = corelm("inspect", "--json", *arguments)
    return outcome, json.loads(outcome.out)


def names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def without(*removed: str) -> Any:
    def change(tensors: Tensors) -> Tensors:
        return {name: tensor for name, tensor in tensors.items() if name not in removed}

    return change


def test_the_report(corelm: Run) -> None:
    outcome = corelm("inspect", MIXTRAL)
    assert (outcome.code, outcome.err) == (0, "")
    assert masked(outcome.out) == MIXTRAL_REPORT


def test_json_is_the_documented_object(corelm: Run) -> None:
    outcome, found = inspect_json(corelm, STORIES_SHARDED)
    assert (outcome.code, outcome.err, found["ok"], found["errors"]) == (0, "", True, [])
    assert found.keys() == names(Inspection)
    assert found["checkpoint"].keys() == names(CheckpointFacts)
    assert found["plan"].keys() == names(PlanFacts)
    assert found["schema"] == 1
    assert found["keys"] is None
    checkpoint, plan = found["checkpoint"], found["plan"]
    assert checkpoint["shards"] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert checkpoint["dtypes"] == {"BF16": {"tensors": 48, "bytes": checkpoint["bytes"]}}
    assert checkpoint["parameters"] * 2 == checkpoint["bytes"]
    assert (checkpoint["tokenizer"], checkpoint["chat_template"]) == (True, None)
    # With the CPU library activations and norms are float32.
    assert plan["compute_dtype"] == ("float32" if cpu_sources() else "bfloat16")
    assert plan["bytes"] - checkpoint["bytes"] in ((range(1, 4000)) if cpu_sources() else (0,))
    assert plan["kv_bytes_at_context"] == plan["kv_bytes_per_token"] * plan["context"]
    assert found["plugin"]["value"] == "plugins.mistral"
    assert Path(found["plugin"]["file"]) == ROOT / "plugins/mistral/__init__.py"


def test_another_dtype_is_another_plan(corelm: Run) -> None:
    _, as_stored = inspect_json(corelm, MISTRAL)
    _, found = inspect_json(corelm, MISTRAL, "--dtype", "float16")
    assert found["plan"]["compute_dtype"] == "float16"
    assert found["plan"]["bytes"] * 2 == as_stored["plan"]["bytes"]
    assert found["plan"]["kv_bytes_per_token"] * 2 == as_stored["plan"]["kv_bytes_per_token"]


def test_every_tensor_has_a_line(corelm: Run) -> None:
    outcome = corelm("inspect", MIXTRAL, "--keys")
    assert outcome.code == 0
    header, *rows = [line.split() for line in outcome.out.splitlines()]
    assert {len(row) for row in rows} == {len(header)} == {7}
    assert sorted(row[0] for row in rows) == sorted(open_checkpoint(MIXTRAL).tensors)
    expert = "block_sparse_moe.experts"
    assert next(row for row in rows if row[0] == f"model.layers.1.{expert}.2.w3.weight") == [
        f"model.layers.1.{expert}.2.w3.weight",
        "F32",
        "[128,64]",
        "stack[3/8].concat[2/2]",
        f"layers.1.{expert}.gate_up_proj.linears.0.weight",
        "float32",
        "[8,256,64]",
    ]


def test_keys_in_json(corelm: Run) -> None:
    _, found = inspect_json(corelm, MISTRAL, "--keys")
    assert {frozenset(key) for key in found["keys"]} == {frozenset(names(Key))}
    norm = next(key for key in found["keys"] if key["tensor"] == "model.norm.weight")
    assert norm == {
        "tensor": "model.norm.weight",
        "stored": "F32",
        "shape": [64],
        "operation": "copy",
        "parameter": "norm.weight",
        "dtype": "float32",
        "parameter_shape": [64],
    }


def test_what_does_not_fit(corelm: Run, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> Tensors:
        left = without(f"{V_PROJ}.weight")(tensors)
        return left | {"model.norm.weight": tensors["lm_head.weight"], "extra.weight": tensors["model.norm.weight"]}

    broken = variant(MISTRAL, tmp_path / "broken", tensors=change)
    outcome, found = inspect_json(corelm, broken, "--keys")
    assert (outcome.code, found["ok"]) == (1, False)
    assert [error["kind"] for error in found["errors"]] == ["WeightsError"]
    plan = found["plan"]
    assert plan["missing"].keys() == {f"{V_PROJ}.weight"}
    assert plan["unexpected"] == ["extra.weight"]
    assert [(one["tensor"], one["expected"], one["found"]) for one in plan["mismatched"]] == [
        ("model.norm.weight", "shape [64]", "[256, 64]")
    ]
    operations = {key["tensor"]: key["operation"] for key in found["keys"]}
    assert operations[f"{V_PROJ}.weight"] == "missing"
    assert operations["extra.weight"] == "unexpected"
    assert operations["model.norm.weight"] == "mismatched"
    assert operations["model.layers.0.self_attn.q_proj.weight"] == "concat[1/3]"

    outcome = corelm("inspect", broken)
    assert outcome.code == 1
    assert f"\n  missing         {V_PROJ}.weight\n" in outcome.out
    assert "\n  unexpected      extra.weight\n" in outcome.out
    assert "\n  mismatched      model.norm.weight: expected shape [64], found [256, 64] in " in outcome.out
    assert len(outcome.messages) == 1


def test_tensors_that_wait_for_a_missing_one(corelm: Run, tmp_path: Path) -> None:
    expert = "model.layers.0.block_sparse_moe.experts"
    broken = variant(MIXTRAL, tmp_path / "broken", tensors=without(f"{expert}.3.w2.weight"))
    outcome, found = inspect_json(corelm, broken, "--keys")
    assert outcome.code == 1
    operations = {key["tensor"]: key["operation"] for key in found["keys"]}
    assert operations[f"{expert}.3.w2.weight"] == "missing"
    assert operations[f"{expert}.2.w2.weight"] == "incomplete"
    assert operations[f"{expert}.2.w1.weight"] == "stack[3/8].concat[1/2]"


def test_a_type_that_nobody_loads_is_described_all_the_same(corelm: Run, tmp_path: Path) -> None:
    strange = variant(MISTRAL, tmp_path / "strange", config={"model_type": "strange", "architectures": ["Strange"]})
    outcome = corelm("inspect", strange)
    assert outcome.code == 1
    assert "\n  model type      strange (Strange)\n" in outcome.out
    assert "\n  tensors         30, 137,664 parameters, 537.75 KiB\n" in outcome.out
    assert "\n  loaded by       nobody\n" in outcome.out
    assert outcome.messages[0].endswith(
        "no installed plugin loads model_type 'strange' (found plugins for mistral, mistral3, mixtral)"
    )
    outcome, found = inspect_json(corelm, strange, "--keys")
    assert (outcome.code, found["plugin"], found["plan"], found["memory"]) == (1, None, None, None)
    assert {key["operation"] for key in found["keys"]} == {"unplanned"}
    assert len(found["keys"]) == 30


def test_a_config_that_is_wrong_does_not_hide_who_loads_it(corelm: Run, tmp_path: Path) -> None:
    outcome, found = inspect_json(corelm, variant(MISTRAL, tmp_path / "wrong", config={"hidden_size": "64"}))
    assert outcome.code == 1
    assert (found["plugin"]["value"], found["plan"]) == ("plugins.mistral", None)
    assert found["checkpoint"]["tensors"] == 30


def test_several_errors_are_several_messages(corelm: Run, tmp_path: Path) -> None:
    broken = variant(MISTRAL, tmp_path / "broken", config={"model_type": REMOVED})
    (broken / "model.safetensors").write_bytes(b"")
    outcome = corelm("inspect", broken)
    assert outcome.code == 1
    assert len(outcome.messages) == 2
    assert all(message.startswith(f"error: {broken}") for message in outcome.messages)


def test_what_cannot_be_opened(corelm: Run, tmp_path: Path) -> None:
    outcome = corelm("inspect", tmp_path / "nowhere")
    assert (outcome.code, outcome.out, len(outcome.messages)) == (1, "", 1)
    outcome, found = inspect_json(corelm, tmp_path / "nowhere")
    assert (outcome.code, found["ok"], found["checkpoint"]) == (1, False, None)
    assert corelm("inspect", MISTRAL, "--revision", "main").code == 2


@pytest.mark.parametrize("name", [name for name, each in DAMAGES.items() if each.planned and not each.tokenizer])
def test_what_a_load_refuses_is_1(corelm: Run, tmp_path: Path, name: str) -> None:
    damage = DAMAGES[name]
    outcome = corelm("inspect", damage.build(tmp_path / "damaged"))
    assert outcome.code == 1
    assert outcome.messages
    assert all(message.startswith("error: ") for message in outcome.messages)
    for part in damage.says:
        assert part in outcome.err


def test_unread_keys_and_strict(corelm: Run, tmp_path: Path) -> None:
    odd = variant(MISTRAL, tmp_path / "odd", config={"logit_softcap": 30.0})
    outcome = corelm("inspect", odd)
    assert (outcome.code, outcome.err) == (0, "")
    assert "\n  unread keys     logit_softcap\n" in outcome.out
    outcome = corelm("inspect", odd, "--strict")
    assert outcome.code == 1
    assert "logit_softcap" in outcome.messages[0]
    assert corelm("inspect", MISTRAL, "--strict").code == 0


def test_tokenizer_and_chat_template(corelm: Run, tmp_path: Path) -> None:
    chat = with_chat_template(STORIES, tmp_path / "chat", "{{ messages }}")
    facts = inspect_json(corelm, chat)[1]["checkpoint"]
    assert (facts["tokenizer"], facts["chat_template"]) == (True, "tokenizer_config.json")
    (chat / "chat_template.jinja").write_text("{{ messages }}")
    assert inspect_json(corelm, chat)[1]["checkpoint"]["chat_template"] == "chat_template.jinja"


def test_a_vocabulary_with_instruction_tokens_needs_no_template(corelm: Run, tmp_path: Path) -> None:
    assert inspect_json(corelm, STORIES)[1]["checkpoint"]["chat_format"] is None
    directory = variant(STORIES, tmp_path / "instruct")
    file = directory / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    size = len(tokenizer["model"]["vocab"]) + len(tokenizer["added_tokens"])
    tokenizer["added_tokens"] += [
        {"id": size + i, "content": literal, "special": True} | flags for i, literal in enumerate(("[INST]", "[/INST]"))
    ]
    file.write_text(json.dumps(tokenizer))
    assert core.load_tokenizer(directory).can_chat
    facts = inspect_json(corelm, directory)[1]["checkpoint"]
    assert facts["chat_template"] is None
    assert "[INST]" in facts["chat_format"]
    text = "\n  chat template   none: Mistral's instruct format, [INST] … [/INST]\n"
    assert text in corelm("inspect", directory).out
    file.write_text("{")
    assert corelm("inspect", directory).code == 0  # the exit code says whether the weights would load
    with_template = with_chat_template(STORIES, tmp_path / "chat", "{{ messages }}")
    assert inspect_json(corelm, with_template)[1]["checkpoint"]["chat_format"] is None


def test_files_that_are_no_part_of_the_model(corelm: Run, tmp_path: Path) -> None:
    copy = variant(MISTRAL, tmp_path / "copy")
    (copy / "old.safetensors").write_bytes((copy / "model.safetensors").read_bytes())
    outcome = corelm("inspect", copy)
    assert outcome.code == 0
    assert "\n  stray files     old.safetensors (not read)\n" in outcome.out


def test_a_uniform_quantization(corelm: Run, tmp_path: Path) -> None:
    copy = quantized(MIXTRAL, tmp_path / "q4", lambda name: None if name.endswith(".gate") else 4)
    outcome = corelm("inspect", copy)
    assert outcome.code == 0
    assert "\n  tensors         181, 447,808 parameters," in outcome.out
    assert "\n  quantization    4-bit, groups of 32\n" in outcome.out
    assert "\n  not quantized   model.layers.{0-1}.block_sparse_moe.gate (2 times)\n" in outcome.out


def test_a_mixed_quantization(corelm: Run, tmp_path: Path) -> None:
    def bits(name: str) -> int | None:
        return None if name == "lm_head" else 6 if name == V_PROJ else 4

    copy = quantized(MISTRAL, tmp_path / "mixed", bits)
    outcome, found = inspect_json(corelm, copy)
    assert outcome.code == 0
    assert found["checkpoint"]["parameters"] == found["plan"]["parameters"] == 137_664
    kinds = {
        (one["kind"], one["names"], one["bits"], one["count"])
        for one in found["checkpoint"]["quantization"]["matrices"]
    }
    v_proj = "model.layers.*.self_attn.v_proj"
    assert (v_proj, V_PROJ, 6, 1) in kinds
    assert (v_proj, "model.layers.{0,2}.self_attn.v_proj", 4, 2) in kinds
    assert ("lm_head", "lm_head", None, 1) in kinds
    assert ("model.layers.*.self_attn.q_proj", "model.layers.{0-2}.self_attn.q_proj", 4, 3) in kinds
    fused = {(tuple(group["parts"]), group["count"]) for group in found["plan"]["fused"]}
    assert fused == {(("q_proj", "k_proj", "v_proj"), 2), (("q_proj", "k_proj"), 1), (("gate_proj", "up_proj"), 3)}

    text = corelm("inspect", copy).out
    assert "\n  quantization    mixed\n" in text
    assert f"\n                  6-bit, groups of 32: {V_PROJ}\n" in text
    assert "\n                  not quantized: lm_head\n" in text


def test_another_tools_quantization(corelm: Run, tmp_path: Path) -> None:
    block = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    foreign = variant(MISTRAL, tmp_path / "fp8", config={"quantization_config": block})
    outcome, found = inspect_json(corelm, foreign)
    assert outcome.code == 1
    assert found["checkpoint"]["quantization"] == {"method": "fp8", "matrices": []}
    assert found["checkpoint"]["parameters"] is None
    assert "\n  quantization    fp8 (no method that is supported)\n" in corelm("inspect", foreign).out


def test_a_plugin_of_ones_own_choice(corelm: Run) -> None:
    outcome = corelm("inspect", MIXTRAL, "--plugin", "plugins.mistral")
    assert outcome.code == 1  # Mixtral's tensors are not Mistral's
    assert "\n  loaded by       plugins.mistral (explicit)\n" in outcome.out
    assert re.search(r"\n  not by +corelm .* \(entry point mixtral = plugins\.mixtral\): overridden\n", outcome.out)


def test_headers_alone_tell_of_93_gigabytes(corelm: Run, tmp_path: Path) -> None:
    outcome, found = inspect_json(corelm, write_mixtral_8x7b(tmp_path / "8x7b"), "--dtype", "bfloat16")
    assert outcome.code == 0
    assert found["checkpoint"]["parameters"] == found["plan"]["parameters"] == 46_702_792_704
    assert found["checkpoint"]["bytes"] == found["plan"]["bytes"] == 93_405_585_408
    assert found["plan"]["context"] == MIXTRAL_8X7B["max_position_embeddings"]
    assert found["plan"]["kv_bytes_per_token"] == 2 * 32 * 8 * 128 * 2
    assert found["memory"]["needed"] == 93_405_585_408 + 4096 * found["plan"]["kv_bytes_per_token"]


@pytest.mark.parametrize("limits", [(10, 10**12, "tight"), (10, 10, "too large"), (None, None, "fits")])
def test_what_the_memory_holds(
    corelm: Run, monkeypatch: pytest.MonkeyPatch, limits: tuple[int | None, int | None, str]
) -> None:
    monkeypatch.setattr("core.loading.memory.memory_limits", lambda: limits[:2])
    outcome, found = inspect_json(corelm, MISTRAL)
    assert (outcome.code, found["memory"]["verdict"]) == (0, limits[2])
    assert f"\n  memory          {limits[2]}: " in corelm("inspect", MISTRAL).out


@pytest.mark.parametrize("arguments", [(), ("--keys",), ("--json",), ("--json", "--keys"), ("--strict",)])
@pytest.mark.parametrize("model_type", ["mistral", "mis\x1b[2Jtral"])
def test_no_name_reaches_the_terminal_as_it_is(
    corelm: Run, tmp_path: Path, arguments: tuple[str, ...], model_type: str
) -> None:
    evil = "\x1b[31m\u202e \n\x07\x9b\x7f"
    config = json.loads((MISTRAL / "config.json").read_text())
    config |= {"model_type": model_type, evil: 1, "architectures": [f"MistralForCausalLM{evil}"]}
    if model_type == "mistral":
        config["architectures"] = ["MistralForCausalLM"]
    hostile = with_header(tmp_path / evil.replace("\n", "n"), config, [f"model.{evil}.weight", "lm_head.weight"])
    (hostile / f"{evil}.safetensors").write_bytes(b"")
    outcome = corelm("inspect", hostile, *arguments)
    assert outcome.code == 1
    for text in (outcome.out, outcome.err):
        assert all(character.isprintable() or character == "\n" for character in text)
    assert r"\u202e" in outcome.out


def test_what_quantizing_would_take(corelm: Run) -> None:
    """The plan of a quantized load: its bytes, and which tensors are quantized on their way."""
    _, whole = inspect_json(corelm, MIXTRAL)
    _, found = inspect_json(corelm, MIXTRAL, "--quantize", "4", "--keys")
    assert found["ok"]
    assert found["plan"]["bytes"] < whole["plan"]["bytes"] / 4
    assert found["plan"]["parameters"] == whole["plan"]["parameters"]
    assert found["plan"]["fused"] == whole["plan"]["fused"]
    operations = {key["tensor"]: key["operation"] for key in found["keys"]}
    assert operations["model.layers.0.self_attn.q_proj.weight"] == "concat[1/3].quantize"
    assert operations["model.layers.0.block_sparse_moe.gate.weight"] == "copy"
    assert corelm("inspect", MIXTRAL, "--quantize", "7").code == 2


def test_quantizing_twice(corelm: Run, tmp_path: Path) -> None:
    copy = quantized(MISTRAL, tmp_path / "q4", lambda name: 4)
    outcome = corelm("inspect", copy, "--quantize", "8")
    assert outcome.code == 1
    assert "quantized already" in outcome.err
    assert corelm("inspect", copy, "--quantize", "8", "--dequantize").code == 0


def test_gptq(corelm: Run, tmp_path: Path) -> None:
    block: dict[str, object] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    made = write_foreign(MISTRAL, tmp_path, partial(gptq, bits=4), block)
    _, found = inspect_json(corelm, made.path, "--keys")
    assert found["ok"]
    assert found["checkpoint"]["quantization"]["method"] == "gptq"
    operations = {key["tensor"]: key["operation"] for key in found["keys"]}
    assert operations["model.layers.0.mlp.down_proj.qweight"] == "gptq"
    text = corelm("inspect", made.path).out
    assert "gptq (imported)" in text
    assert "bytes more than float16" in " ".join(text.split())


def test_a_format_is_chosen_where_there_are_two(corelm: Run, tmp_path: Path) -> None:
    both, option = tmp_path / "both", ["--format", "mistral"]
    both.mkdir()
    for layout in ("hf", "mistral"):
        for file in write_layout(oracle("mistral_headdim32"), tmp_path / layout, layout).iterdir():
            file.replace(both / file.name)
    usual, native = (json.loads(corelm("inspect", both, "--json", "--keys", *more).out) for more in ([], option))
    assert (usual["checkpoint"]["format"], usual["plan"]["layout"]) == ("hf", "hf")
    assert (native["checkpoint"]["format"], native["plan"]["layout"]) == ("mistral", "mistral")
    assert "--format mistral" in usual["plan"]["notes"][0]
    operations = {key["tensor"]: key["operation"] for key in native["keys"]}
    assert operations["layers.0.attention.wq.weight"] == "concat[1/3].permute"
    assert operations["layers.0.attention.wv.weight"] == "concat[3/3]"
