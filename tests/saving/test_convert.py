"""What a conversion writes beside the tensors, and what it makes of them when it is asked for another dtype."""

from __future__ import annotations

import inspect
import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors import safe_open

import core
from core.checkpoint.source import DEMOS
from core.errors import SaveError, UsageError, WeightsError
from core.saving import plan_conversion
from core.saving.format_check import check_with_safetensors
from core.saving.table import Tensor as Table
from core.saving.writer import ShardWriter
from tests.fixtures import STORIES_SHARDED, oracle
from tests.fixtures.variants import Tensor, read_tensors, variant
from tests.saving.compare import assert_same_tensors

MIXTRAL = oracle("mixtral_swa8")


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
def test_floats_are_rounded_to_the_dtype_asked_for(dtype: mx.Dtype, tmp_path: Path) -> None:
    core.convert(MIXTRAL, tmp_path / "out", dtype=dtype)
    theirs = mx.load(str(MIXTRAL / "model.safetensors"))
    ours = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert isinstance(theirs, dict)
    assert isinstance(ours, dict)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].dtype == dtype
        assert mx.array_equal(ours[name], theirs[name].astype(dtype))
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["torch_dtype"] == str(dtype).removeprefix("mlx.core.")
    assert "dtype" not in written


def test_the_dtype_may_be_given_by_its_name(tmp_path: Path) -> None:
    core.convert(MIXTRAL, tmp_path / "out", dtype="bfloat16")
    written = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert isinstance(written, dict)
    assert {array.dtype for array in written.values()} == {mx.bfloat16}
    with pytest.raises(UsageError, match="float32 or float16 or bfloat16"):
        core.convert(MIXTRAL, tmp_path / "other", dtype="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_dtype_that_is_too_small_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    huge = Tensor.of(np.full(64, 1e30, np.float32), "F32")
    source = variant(MIXTRAL, tmp_path / "source", tensors=lambda found: found | {"model.norm.weight": huge})
    with pytest.raises(WeightsError, match=r"model\.norm\.weight holds numbers too large for float16"):
        core.convert(source, tmp_path / "out", dtype=mx.float16)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_shards_and_index_are_as_transformers_and_mlx_lm_write_them(tmp_path: Path) -> None:
    done = core.convert(MIXTRAL, tmp_path / "out", max_shard_size=300_000)
    tensors = read_tensors(tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    count = len(done.target.shards)
    names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == names
    assert index["metadata"] == {
        "total_size": sum(len(tensor.data) for tensor in tensors.values()),
        "total_parameters": sum(math.prod(tensor.shape) for tensor in tensors.values()),
    }
    assert index["weight_map"].keys() == tensors.keys()
    for name in names:
        with safe_open(tmp_path / "out" / name, framework="numpy") as file:  # the reference reader of the format
            assert file.metadata() == {"format": "pt"}
            sizes = [len(tensors[key].data) for key in file.keys()]  # noqa: SIM118
        assert sum(sizes) <= 300_000 or len(sizes) == 1


def test_mlx_files_say_so(tmp_path: Path) -> None:
    core.convert(MIXTRAL, tmp_path / "stacked", layout="mlx")
    core.convert(DEMOS / "mistral", tmp_path / "quantized")
    for name in ("stacked", "quantized"):
        with safe_open(tmp_path / name / "model.safetensors", framework="numpy") as file:
            assert file.metadata() == {"format": "mlx"}


def test_total_parameters_count_weights_and_not_their_packing(tmp_path: Path) -> None:
    target = plan_conversion(DEMOS / "mixtral", tmp_path / "out").target
    assert target.parameters == core.plan(DEMOS / "mixtral").parameters == 4_333_248


def test_everything_but_code_goes_along(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(DEMOS / "mistral", source)
    carried = {
        "chat_template.jinja": "{{ messages }}",
        "additional_chat_templates/tool_use.jinja": "{{ tools }}",
        "special_tokens_map.json": "{}",
        "tokenizer.model": "pieces",
        "LICENSE": "terms",
    }
    left = {
        "modeling_custom.py": "evil",
        "pytorch_model.bin": "x",
        "tokenizer_custom.json.py": "x",
        ".hidden": "x",
        "original/params.json": "{}",
    }
    for name, text in (carried | left).items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    done = core.convert(source, tmp_path / "out")
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    weights = {"model.safetensors", "config.json", "README.md"}
    carried |= dict.fromkeys(["tokenizer.json", "tokenizer_config.json", "generation_config.json"], "")
    assert written == weights | carried.keys() == set(done.files)
    for name in carried:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| source | source |" in card
    told = "files: `modeling_custom.py`, `pytorch_model.bin`, `tokenizer_custom.json.py` and 1 more |"
    assert f"| left out | {told}" in card
    assert f"corelm {core.__version__}" in card
    assert done.left == ("modeling_custom.py", "original/", "pytorch_model.bin", "tokenizer_custom.json.py")
    assert str(tmp_path) not in card  # where a user keeps files is nobody's business
    core.save(core.load(source), tmp_path / "saved")
    assert (tmp_path / "saved" / "chat_template.jinja").read_text() == "{{ messages }}"


def test_a_dry_run_reads_headers_and_writes_nothing(tmp_path: Path) -> None:
    planned = plan_conversion(STORIES_SHARDED, tmp_path / "out", dtype=mx.float32)
    assert not list(tmp_path.iterdir())
    core.convert(STORIES_SHARDED, tmp_path / "out", dtype=mx.float32)
    sizes = {shard.name: shard.nbytes for shard in planned.target.shards}
    assert sizes == {path.name: path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")}


def test_a_shard_that_reads_back_otherwise_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    close = ShardWriter._close

    def damage(writer: ShardWriter) -> None:
        if writer._file is not None:
            writer._file.seek(-1, 2)
            writer._file.write(b"\x55")
        close(writer)

    monkeypatch.setattr(ShardWriter, "_close", damage)
    with pytest.raises(SaveError, match="does not read back as it was written"):
        core.convert(MIXTRAL, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_formats_own_reader_has_the_last_word(tmp_path: Path) -> None:
    """Ours alone would not notice what writer and reader both take for granted."""
    (shard,) = core.convert(MIXTRAL, tmp_path / "out").target.shards
    path = tmp_path / "out" / shard.name
    check_with_safetensors(path, shard)
    other = (replace(shard.tensors[0], dtype=mx.float16), *shard.tensors[1:])
    for tensors in (other, shard.tensors[1:], (*shard.tensors, Table("more", mx.float32, (1,)))):
        with pytest.raises(SaveError, match="is read differently by safetensors"):
            check_with_safetensors(path, replace(shard, tensors=tensors))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SaveError, match="is not read by safetensors") as caught:
        check_with_safetensors(path, shard)
    assert caught.value.where == str(path)


def test_without_numpy_the_formats_own_reader_is_given_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "numpy", None)
    (shard,) = core.convert(MIXTRAL, tmp_path / "out").target.shards
    path = tmp_path / "out" / shard.name
    whole = path.read_bytes()
    for old, new in ((b'"F32"', b'"F16"'), (b'"F32"', b'"R32"'), (b"[0,", b"[8,"), (b'":{', b'" {'), (b"{", b"[")):
        path.write_bytes(whole[:8] + whole[8:].replace(old, new, 1))
        with pytest.raises(SaveError, match="is not read by safetensors") as caught:
            check_with_safetensors(path, shard)
        assert caught.value.where == str(path)
    path.write_bytes((len(shard.header)).to_bytes(8, "little") + whole[8:])  # eight bytes more than there are
    with pytest.raises(SaveError, match="is not read by safetensors"):
        check_with_safetensors(path, shard)
    path.write_bytes(whole[:-1])
    with pytest.raises(SaveError, match="is of another size"):
        check_with_safetensors(path, shard)
    empty = replace(shard, tensors=())
    path.write_bytes(empty.header)
    check_with_safetensors(path, empty)
    with pytest.raises(SaveError, match="is not read by safetensors"):
        check_with_safetensors(path, shard)


def test_options_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no layout 'gguf'"):
        core.convert(MIXTRAL, tmp_path / "out", layout="gguf")
    with pytest.raises(UsageError, match="must be positive"):
        core.convert(MIXTRAL, tmp_path / "out", max_shard_size=0)


@pytest.mark.skipif("quantize" not in inspect.signature(core.load).parameters, reason="loading does not quantize yet")
@pytest.mark.parametrize("setting", [4, "mxfp4", {"*.w2": 8, "lm_head": False, "*": 4}], ids=str)
def test_quantizing_on_the_way_is_saving_what_was_quantized_on_load(setting: object, tmp_path: Path) -> None:
    source = variant(MIXTRAL, tmp_path / "source", config={"sliding_window": None})
    core.convert(source, tmp_path / "converted", quantize=setting, layout="mlx")
    lm = core.load(source, tokenizer=False, **{"quantize": setting})  # type: ignore[arg-type]
    core.save(lm, tmp_path / "saved", layout="mlx")
    assert_same_tensors(tmp_path / "converted", tmp_path / "saved")
    assert json.loads((tmp_path / "converted" / "config.json").read_text())["quantization"]
    core.convert(tmp_path / "converted", tmp_path / "floats", dequantize=True)
    assert "quantization" not in json.loads((tmp_path / "floats" / "config.json").read_text())
    assert core.plan(tmp_path / "floats").ok
