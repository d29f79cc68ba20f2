"""Damaged checkpoints: each built from a good one by one change, with the error that must come of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import (
    CheckpointError,
    ConfigError,
    CoreError,
    QuantizationError,
    TokenizerError,
    UnknownModelTypeError,
    WeightsError,
)
from tests.fixtures import STORIES, STORIES_SHARDED, oracle
from tests.fixtures.variants import REMOVED, Tensor, Tensors, cast, variant

MISTRAL, MIXTRAL = oracle("mistral_swa8"), oracle("mixtral_swa8")
SHARD = "model.safetensors"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
V_PROJ = "model.layers.1.self_attn.v_proj.weight"


@dataclass(frozen=True)
class Damage:
    """One way of being broken.

    Attributes:
        build: makes the checkpoint in a directory that does not exist yet; returns the path to load.
        error: the very class of the error.
        says: what its text must hold: file, tensor or key, and the two sides.
        hint: part of the way out.
        planned: whether headers and config tell, so that ``inspect`` says it too.
        tokenizer: load with the tokenizer.
    """

    build: Callable[[Path], Path]
    error: type[CoreError]
    says: tuple[str, ...]
    hint: str
    planned: bool = True
    tokenizer: bool = False


def config(source: Path = MISTRAL, **changes: Any) -> Callable[[Path], Path]:
    return lambda directory: variant(source, directory, config=changes)


def tensors(change: Callable[[Tensors], Tensors], source: Path = MISTRAL, **changes: Any) -> Callable[[Path], Path]:
    return lambda directory: variant(source, directory, config=changes, tensors=change)


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda found: {name: tensor for name, tensor in found.items() if not name.startswith(names)}


def with_tensor(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda found: found | {name: change(found[name])}


def spoilt(value: float) -> Callable[[Tensor], Tensor]:
    def spoil(tensor: Tensor) -> Tensor:
        floats = tensor.floats
        floats.flat[7] = value
        return Tensor.of(floats, "F32")

    return spoil


def file(name: str, change: Callable[[Path], Any], source: Path = MISTRAL) -> Callable[[Path], Path]:
    def build(directory: Path) -> Path:
        variant(source, directory)
        change(directory / name)
        return directory

    return build


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def corrupt_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[40] = 0xFF
    path.write_bytes(data)


def lengthen_header(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes((len(data) + 1).to_bytes(8, "little") + data[8:])


def lfs_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 553736\n")


def pickles_only(path: Path) -> None:
    path.rename(path.with_name("pytorch_model.bin"))


def two_shards_hold_one_tensor(directory: Path) -> Path:
    variant(oracle("mistral_sharded"), directory)
    shards = sorted(directory.glob("*.safetensors"))
    index = directory / "model.safetensors.index.json"
    shutil.copyfile(shards[0], directory / "model-00004-of-00003.safetensors")
    weight_map = json.loads(index.read_text())["weight_map"] | {"extra": "model-00004-of-00003.safetensors"}
    index.write_text(json.dumps({"weight_map": weight_map}))
    return directory


def half_of_the_experts(found: Tensors) -> Tensors:
    found = {name: tensor for name, tensor in found.items() if not any(f"experts.{i}." in name for i in range(4, 8))}
    gates = {name: Tensor.of(found[name].floats[:4], "F32") for name in found if name.endswith("gate.weight")}
    return found | gates


def more_experts(directory: Path) -> Path:
    return variant(MIXTRAL, directory, config={"num_local_experts": 4, "num_experts_per_tok": 2})


def unread_scales(found: Tensors) -> Tensors:
    return found | {"model.layers.0.self_attn.q_proj.scales": Tensor.of(np.ones((64, 1), np.float32), "F32")}


def missing_parent(directory: Path) -> Path:
    directory.mkdir()
    return directory / "no" / "such"


def method(name: str, **settings: Any) -> Damage:
    return Damage(
        config(quantization_config={"quant_method": name, **settings}),
        QuantizationError,
        ("config.json", name, "not supported"),
        "unquantized model",
    )


def no_tokenizer(directory: Path) -> Path:
    variant(STORIES, directory, tensors=with_tensor("model.norm.weight", spoilt(np.nan)))
    (directory / "tokenizer.json").unlink()
    return directory


def spoilt_shard(directory: Path) -> Path:
    variant(STORIES_SHARDED, directory)
    shard = directory / "model-00002-of-00003.safetensors"
    data = bytearray(shard.read_bytes())
    data[-2:] = b"\x80\x7f"  # infinity in bfloat16
    shard.write_bytes(data)
    return directory


def only(**files: str) -> Callable[[Path], Path]:
    """A directory with no more than these files: name, with ``__`` for the dot, to text."""

    def build(directory: Path) -> Path:
        directory.mkdir()
        for name, text in files.items():
            (directory / name.replace("__", ".")).write_text(text)
        return directory

    return build


DAMAGES = {
    "a PEFT adapter": Damage(
        only(adapter_config__json='{"base_model_name_or_path": "org/base"}', adapter_model__safetensors=""),
        CheckpointError,
        ("is an adapter, not a model, for the base model 'org/base'", "adapter_config.json"),
        "pass the base model that it was trained on, or merge the two",
    ),
    "an adapter of mlx-lm's": Damage(
        only(adapter_config__json='{"model": "mlx/base", "fine_tune_type": "lora"}', adapters__safetensors=""),
        CheckpointError,
        ("is an adapter, not a model, for the base model 'mlx/base'",),
        "mlx_lm.fuse",
    ),
    "an adapter of nobody knows what": Damage(
        only(adapter_config__json="{}"), CheckpointError, ("is an adapter, not a model (",), "pass the base model"
    ),
    "GGUF files": Damage(
        only(model_q4__gguf="GGUF", model_q8__gguf="GGUF", README__md="# A model"),
        CheckpointError,
        ("only GGUF (found model_q4.gguf, model_q8.gguf)", "which is not read"),
        "pass the model that it was made from, in safetensors format",
    ),
    "a GGUF file": Damage(
        lambda directory: only(model__gguf="GGUF")(directory) / "model.gguf",
        CheckpointError,
        ("is a GGUF file", "which is not read"),
        "pass the model that it was made from, in safetensors format",
    ),
    "no config.json": Damage(file("config.json", Path.unlink), CheckpointError, ("has no config.json",), "checkpoint"),
    "config.json is not JSON": Damage(
        file("config.json", lambda path: path.write_text('{"model_type": "mistral",')),
        ConfigError,
        ("config.json", "not valid JSON", "line 1"),
        "correct it",
    ),
    "config.json is a list": Damage(
        file("config.json", lambda path: path.write_text("[1, 2]")),
        ConfigError,
        ("config.json", "not a JSON object"),
        "",
    ),
    "config.json is a git-LFS pointer": Damage(
        file("config.json", lfs_pointer), ConfigError, ("config.json", "git-LFS pointer"), "git lfs pull"
    ),
    "no model_type": Damage(
        config(model_type=REMOVED), ConfigError, ("config.json", "'model_type' is missing"), "names"
    ),
    "model_type is a number": Damage(config(model_type=7), ConfigError, ("config.json", "'model_type'", "7"), "names"),
    "unknown model_type": Damage(
        config(model_type="mistrall"), UnknownModelTypeError, ("config.json", "mistrall", "mistral"), "install"
    ),
    "a string for an integer": Damage(
        config(hidden_size="64"), ConfigError, ("config.json", "'hidden_size'", "integer", "'64' (str)"), "Compare"
    ),
    "a float for an integer": Damage(
        config(num_hidden_layers=3.0), ConfigError, ("config.json", "'num_hidden_layers'", "3.0 (float)"), "Compare"
    ),
    "a string for a number": Damage(
        config(rope_theta="1e6"), ConfigError, ("config.json", "rope_theta", "'1e6' (str)"), "Compare"
    ),
    "a number for a boolean": Damage(
        config(tie_word_embeddings=0), ConfigError, ("config.json", "'tie_word_embeddings'", "0 (int)"), "Compare"
    ),
    "a negative size": Damage(config(vocab_size=-1), ConfigError, ("'vocab_size'", "greater than 0", "-1"), "Compare"),
    "an unknown activation": Damage(
        config(hidden_act="gelu"), ConfigError, ("'hidden_act'", "'silu'", "'gelu'"), "Compare"
    ),
    "an unknown rope type": Damage(
        config(rope_scaling={"type": "spiral", "factor": 2.0}),
        ConfigError,
        ("config.json", "rope_scaling.type", "'spiral'", "'yarn'"),
        "Compare",
    ),
    "a rope type without its factor": Damage(
        config(rope_scaling={"type": "linear"}), ConfigError, ("config.json", "rope_scaling", "factor"), "Compare"
    ),
    "several missing keys": Damage(
        config(hidden_size=REMOVED, num_attention_heads=REMOVED),
        ConfigError,
        ("config.json", "'hidden_size' is missing", "'num_attention_heads' is missing"),
        "Compare",
    ),
    "a missing key": Damage(
        config(intermediate_size=REMOVED), ConfigError, ("config.json", "'intermediate_size' is missing"), "Compare"
    ),
    "heads that cannot be grouped": Damage(
        config(num_key_value_heads=3), ConfigError, ("config.json", "num_key_value_heads", "3", "8"), "Compare"
    ),
    "more experts for a token than there are": Damage(
        config(MIXTRAL, num_experts_per_tok=9),
        ConfigError,
        ("config.json", "num_experts_per_tok is 9", "at most", "(8)"),
        "Compare",
    ),
    "a classifier": Damage(
        config(architectures=["MistralForSequenceClassification"]),
        ConfigError,
        ("config.json", "MistralForSequenceClassification", "MistralForCausalLM"),
        "text generation",
    ),
    "an embedder": Damage(config(architectures=["MistralModel"]), ConfigError, ("MistralModel",), "text generation"),
    "a missing shard": Damage(
        file("model-00002-of-00003.safetensors", Path.unlink, oracle("mistral_sharded")),
        CheckpointError,
        ("model.safetensors.index.json", "no model-00002-of-00003.safetensors"),
        "resume the download",
    ),
    "a truncated shard": Damage(
        file("model-00002-of-00003.safetensors", truncate, oracle("mistral_sharded")),
        CheckpointError,
        ("model-00002-of-00003.safetensors", "truncated", "tensor"),
        "run it again",
    ),
    "a corrupt header": Damage(file(SHARD, corrupt_header), CheckpointError, (SHARD, "header"), ""),
    "a header longer than the file": Damage(
        file(SHARD, lengthen_header), CheckpointError, (SHARD, "cut off inside its header", "553,7"), "fetch it again"
    ),
    "a git-LFS pointer": Damage(file(SHARD, lfs_pointer), CheckpointError, (SHARD, "git-LFS pointer"), "git lfs pull"),
    "an empty file": Damage(
        file(SHARD, lambda path: path.write_bytes(b"")), CheckpointError, (SHARD, "empty file"), "fetch it again"
    ),
    "pickles only": Damage(
        file(SHARD, pickles_only), CheckpointError, ("pytorch_model.bin", "safetensors"), "convert them"
    ),
    "no weights": Damage(file(SHARD, Path.unlink), CheckpointError, ("holds no weights", "*.safetensors"), "files"),
    "a tensor in two shards": Damage(
        two_shards_hold_one_tensor,
        CheckpointError,
        ("in two shards", "model-00001-of-00003.safetensors", "model-00004-of-00003.safetensors"),
        "download the checkpoint afresh",
    ),
    "a missing tensor": Damage(tensors(without(V_PROJ)), WeightsError, ("missing", V_PROJ), "inspect"),
    "a missing layer": Damage(
        tensors(without("model.layers.2.")), WeightsError, ("missing model.layers.2.",), "inspect"
    ),
    "too many layers": Damage(config(num_hidden_layers=2), WeightsError, ("unexpected", "model.layers.2."), "inspect"),
    "an unknown tensor": Damage(
        tensors(lambda found: found | {"model.layers.0.self_attn.q_norm.weight": found["model.norm.weight"]}),
        WeightsError,
        ("unexpected", "model.layers.0.self_attn.q_norm.weight"),
        "inspect",
    ),
    "no lm_head": Damage(tensors(without("lm_head")), WeightsError, ("missing lm_head.weight",), "tie_word_embeddings"),
    "a wrong shape": Damage(
        tensors(with_tensor(Q_PROJ, lambda tensor: Tensor.of(tensor.floats[:, :32], "F32"))),
        WeightsError,
        (Q_PROJ, SHARD, "[64, 64]", "[64, 32]"),
        "inspect",
    ),
    "a transposed matrix": Damage(
        tensors(with_tensor("model.layers.0.mlp.down_proj.weight", lambda tensor: Tensor.of(tensor.floats.T, "F32"))),
        WeightsError,
        ("model.layers.0.mlp.down_proj.weight", "[64, 128]", "[128, 64]"),
        "inspect",
    ),
    "a vocabulary of another size": Damage(
        config(vocab_size=257), WeightsError, ("model.embed_tokens.weight", "[257, 64]", "[256, 64]"), "inspect"
    ),
    **{
        f"dtype {dtype}": Damage(
            tensors(with_tensor(Q_PROJ, lambda tensor, dtype=dtype: cast(tensor, dtype))),
            WeightsError,
            (Q_PROJ, SHARD, "expected F32", f"found {dtype}"),
            "inspect",
        )
        for dtype in ("I64", "I32", "I8", "U8", "F64")
    },
    "float8 without a word": Damage(
        tensors(with_tensor(Q_PROJ, lambda tensor: Tensor("F8_E4M3", tensor.shape, tensor.data[::4]))),
        WeightsError,
        (Q_PROJ, "F8_E4M3"),
        "inspect",
    ),
    "8 experts in the config, 4 in the files": Damage(
        tensors(half_of_the_experts, MIXTRAL),
        WeightsError,
        ("missing", "experts.{4-7}", "gate.weight", "[8, 64]", "[4, 64]"),
        "inspect",
    ),
    "4 experts in the config, 8 in the files": Damage(
        more_experts, WeightsError, ("unexpected", "experts.{4-7}", "gate.weight", "[4, 64]", "[8, 64]"), "inspect"
    ),
    "NaN": Damage(
        tensors(with_tensor(V_PROJ, spoilt(np.nan))),
        WeightsError,
        (SHARD, V_PROJ, "NaN", "1 of 1,024"),
        "check_finite",
        planned=False,
    ),
    "infinity in a norm": Damage(
        tensors(with_tensor("model.norm.weight", spoilt(np.inf))),
        WeightsError,
        (SHARD, "model.norm.weight", "infinity"),
        "check_finite",
        planned=False,
    ),
    "infinity in an expert": Damage(
        tensors(with_tensor("model.layers.1.block_sparse_moe.experts.5.w2.weight", spoilt(-np.inf)), MIXTRAL),
        WeightsError,
        (SHARD, "model.layers.1.block_sparse_moe.experts.5.w2.weight", "infinity"),
        "check_finite",
        planned=False,
    ),
    "infinity in a bfloat16 shard": Damage(
        spoilt_shard, WeightsError, ("model-00002-of-00003.safetensors", "infinity"), "check_finite", planned=False
    ),
    "a quantization block without scales": Damage(
        config(quantization={"bits": 4, "group_size": 32}),
        QuantizationError,
        ("config.json", "quantized", "4-bit, groups of 32", "no tensor has scales"),
        "Take the quantization block out",
    ),
    "scales without a quantization block": Damage(
        tensors(unread_scales),
        QuantizationError,
        (f"/{SHARD}", "model.layers.0.self_attn.q_proj.scales", "no quantization block"),
        "Copy the block",
    ),
    "bits that MLX does not have": Damage(
        config(quantization={"bits": 7, "group_size": 32}), QuantizationError, ("config.json", "7-bit"), "MLX"
    ),
    "bits beyond every number": Damage(
        config(quantization={"bits": 10**100, "group_size": 32}),
        QuantizationError,
        ("config.json", "a number that is out of range"),
        "MLX",
    ),
    "groups beyond every number": Damage(
        config(quantization={"bits": 4, "group_size": 10**100}),
        QuantizationError,
        ("config.json", "a number that is out of range"),
        "MLX",
    ),
    "a quantization block without bits": Damage(
        config(quantization={"group_size": 32}),
        QuantizationError,
        ("config.json", "'quantization.bits' is missing"),
        "Copy the block",
    ),
    "a quantization mode nobody knows": Damage(
        config(quantization={"bits": 4, "group_size": 32, "mode": "magic"}), QuantizationError, ("magic",), "MLX"
    ),
    "fp8": method("fp8", activation_scheme="dynamic", weight_block_size=[128, 128]),
    "bitsandbytes": method("bitsandbytes", load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "awq": method("awq", bits=4, group_size=128, zero_point=True, version="gemv"),
    "gptq": method("gptq", bits=4, group_size=128, desc_act=True),
    "gptq without its tensors": Damage(
        config(quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}),
        QuantizationError,
        ("config.json", "'gptq'", "no tensor is a qweight"),
        "Take quantization_config out",
    ),
    "compressed-tensors": method("compressed-tensors", format="pack-quantized", config_groups={}),
    "no tokenizer": Damage(no_tokenizer, TokenizerError, ("no tokenizer.json",), "tokenizer=False", tokenizer=True),
    "no such path": Damage(
        missing_parent, CheckpointError, ("no/such", "there is no such directory"), "exists, the rest does not"
    ),
}
