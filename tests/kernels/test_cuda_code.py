"""Compiled code of CUDA kernels: MLX's names for it, the store on disk, and who compiles what, and how often."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from kernel_shim import find_compiler

from core.kernels import Kernel, check_kernel, registry
from core.kernels.ahead import compiling_ahead
from core.kernels.cuda_code import Compiler, Instance, compiler, mlx_folder, nvrtc
from core.kernels.cuda_code.mlx_folder import Folders
from core.kernels.cuda_code.mlx_text import _MLX_HEADER, std_hash
from core.kernels.cuda_code.nvrtc import Code
from core.kernels.cuda_code.store import CodeStore, cache_folder, digest
from core.kernels.device import KernelDevice, use_device

DATA = Path(__file__).parent / "data"
HAS_CUDA = mx.cuda.is_available() and mx.default_device().type == mx.gpu
PROBE = Instance(
    name="probe",
    input_names=("x", "s"),
    output_names=("out",),
    source="int i=threadIdx.x; out[i]=x[i]*T(2)+T(x_shape[0])+T(N)+T(s_ndim)+T(s_strides[0]);",
    header="// a header\n",
    inputs=((mx.bfloat16, True), (mx.float32, True)),
    outputs=(mx.bfloat16,),
    template=(("T", mx.bfloat16), ("N", 3), ("F", True)),
)


def twice_plus_sine(x: mx.array) -> mx.array:
    return 2 * x + mx.sin(x)


CODE = Code(b"\x7fELF\n\x00 machine code", "_Zsymbol")


def test_the_text_and_the_name_are_mlxs() -> None:
    assert PROBE._written(_MLX_HEADER) == (DATA / "mlx_0.32.4_custom_kernel.cu").read_text()
    assert PROBE.module == "custom_kernel_probe_bfloat16_t_3_t_703b6a37f0a2c5"


def test_our_text_differs_in_the_header_alone() -> None:
    theirs, ours = PROBE._written(_MLX_HEADER), PROBE.text
    assert theirs.partition("// a header\n")[2] == ours.partition("// a header\n")[2] != ""


def test_an_input_without_axes_has_no_shape() -> None:
    scalar = Instance("k", ("x",), ("out",), "out[0] = x[0] + x_shape;", "", ((mx.float32, False),), (mx.float32,))
    assert "Shape x_shape" not in scalar.text


def test_the_hash_is_the_c_plus_plus_librarys(tmp_path: Path) -> None:
    cxx = find_compiler()
    if cxx is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "hash.cpp").write_text(
        "#include <cstdio>\n#include <functional>\n#include <string>\n"
        '#ifndef __GLIBCXX__\n#error "another C++ library"\n#endif\n'
        "int main(int, char** argv) { for (argv++; *argv; argv++)"
        ' std::printf("%zx\\n", std::hash<std::string>{}(*argv)); }'
    )
    built = subprocess.run([cxx, "-o", str(tmp_path / "hash"), str(tmp_path / "hash.cpp")], capture_output=True)
    if built.returncode:
        pytest.skip("not GNU's C++ library")
    texts = ["", "a", "seven77", "eight888", "nine99999", "ü" * 21, "x" * 1000]
    printed = subprocess.run([str(tmp_path / "hash"), *texts], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [f"{std_hash(text.encode()):x}" for text in texts]


def test_the_store_gives_back_what_it_was_given(tmp_path: Path) -> None:
    store = CodeStore(tmp_path / "new" / "folder", ("device", "driver"))
    assert store.load("key") is None
    store.save("key", CODE)
    assert store.load("key") == CODE
    assert not store.passed("check")
    store.note_passed("check")
    assert store.passed("check")
    assert CodeStore(tmp_path / "new" / "folder", ("device", "driver")).load("key") == CODE
    other = CodeStore(tmp_path / "new" / "folder", ("device", "another driver"))
    assert other.load("key") is None
    assert not other.passed("check")


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: data.replace(b"E", b"F")])
def test_what_is_damaged_counts_as_absent(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    store = CodeStore(tmp_path, ("device",))
    store.save("key", CODE)
    store.note_passed("check E")
    for file in tmp_path.rglob("*.code"), tmp_path.rglob("*.passed"):
        for path in file:
            path.write_bytes(damage(path.read_bytes()))
    assert store.load("key") is None
    assert not store.passed("check E")
    store.save("key", CODE)
    assert store.load("key") == CODE


def test_a_check_under_another_name_is_not_believed(tmp_path: Path) -> None:
    store = CodeStore(tmp_path, ("device",))
    store.note_passed("one")
    one = next(tmp_path.rglob("one.passed"))
    one.rename(one.with_name("two.passed"))
    assert not store.passed("two")


def test_a_folder_that_cannot_be_used_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for folder in (None, tmp_path / "file", Path("/proc/nothing")):
        store = CodeStore(folder, ("device",))
        store.save("key", CODE)
        store.note_passed("check")
        assert store.load("key") is None
        assert not store.passed("check")


def test_folders_of_environments_that_nobody_uses_are_deleted(tmp_path: Path) -> None:
    for driver in ("old", "recent"):
        CodeStore(tmp_path, (driver,)).save("key", CODE)
    (tmp_path / "of the user").mkdir()
    for folder in tmp_path.iterdir():
        if "old" in ((folder / "environment.txt").read_text() if folder.name != "of the user" else "old"):
            os.utime(folder, (0, 0))
    CodeStore(tmp_path, ("new",))
    assert len(list(tmp_path.iterdir())) == 3
    assert CodeStore(tmp_path, ("recent",)).load("key") == CODE
    assert CodeStore(tmp_path, ("old",)).load("key") is None


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORE_KERNEL_CACHE", "off")
    assert cache_folder() is None
    monkeypatch.setenv("CORE_KERNEL_CACHE", "/some/where")
    assert cache_folder() == Path("/some/where")
    monkeypatch.delenv("CORE_KERNEL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_folder() == Path("/cache/corelm/kernels")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/corelm/kernels")


def test_code_is_put_where_mlx_looks(tmp_path: Path) -> None:
    bad = tmp_path / "file"
    bad.write_text("")
    assert not mlx_folder.hand_over([bad], "module", "name", CODE)
    assert mlx_folder.hand_over([bad, tmp_path / "ptx"], "module", "name", CODE)
    assert (tmp_path / "ptx" / "module.ptx").read_bytes() == CODE.cubin
    assert (tmp_path / "ptx" / "module.txt").read_text() == "name\t_Zsymbol\n"
    (tmp_path / "ptx" / "module.ptx").write_bytes(b"planted by somebody else")
    assert mlx_folder.hand_over([tmp_path / "ptx"], "module", "name", CODE)
    assert (tmp_path / "ptx" / "module.ptx").read_bytes() == CODE.cubin
    assert sorted(path.name for path in (tmp_path / "ptx").iterdir()) == ["module.ptx", "module.txt"]


def test_mlx_is_given_a_folder_unless_the_user_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlx_folder.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.setenv("MLX_PTX_CACHE_DIR", "/of/the/user")
    users = Folders.choose(tmp_path / "cache")
    assert (users.paths, users.open) == ([Path("/of/the/user")], False)
    users.settle(1)
    assert os.environ["MLX_PTX_CACHE_DIR"] == "/of/the/user"
    monkeypatch.delenv("MLX_PTX_CACHE_DIR")
    default = tmp_path / "tmp" / "mlx" / mlx_folder.MLX_VERSION / "ptx"
    assert Folders.choose(None).paths == [default]
    assert "MLX_PTX_CACHE_DIR" not in os.environ
    (tmp_path / "file").write_text("")
    assert Folders.choose(tmp_path / "file").paths == [default]
    assert "MLX_PTX_CACHE_DIR" not in os.environ
    own = tmp_path / "cache" / f"mlx-{mlx_folder.MLX_VERSION}"
    folders = Folders.choose(tmp_path / "cache")
    assert (folders.paths, folders.open) == ([own], True)
    assert os.environ["MLX_PTX_CACHE_DIR"] == str(own)
    folders.settle(0)
    assert (folders.paths, folders.open) == ([own], False)
    assert "MLX_PTX_CACHE_DIR" not in os.environ
    default.mkdir(parents=True)  # MLX may have looked there before
    assert Folders.choose(tmp_path / "cache").paths == [default, own]
    monkeypatch.delenv("MLX_PTX_CACHE_DIR")


@pytest.mark.parametrize("looks", [0, 1, 2])
def test_the_folder_in_which_mlx_looks_is_found_out(
    looks: int, compilers: Compilers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process whose MLX looks in the first folder, the second, or in another one."""
    own, default = compilers.folder / "own", compilers.folder / "default"
    monkeypatch.setenv("MLX_PTX_CACHE_DIR", str(own))
    texts = {digest(mlx_folder.probe_text(place)).encode(): place for place in (1, 2)}

    def run() -> int:
        if not looks:
            return 0
        code = (default, own)[looks - 1] / f"{mlx_folder.PROBE.module}.ptx"
        return texts[code.read_bytes()]

    monkeypatch.setattr(mlx_folder, "run_probe", run)
    process = compilers.process(Folders([default, own], own))
    assert process.prepare(PROBE) is not None
    assert "MLX_PTX_CACHE_DIR" not in os.environ
    assert ("all kernels" in process.failures) == (not looks)
    held = [folder for folder in (default, own) if (folder / f"{PROBE.module}.ptx").is_file()]
    assert held == ([default, own] if not looks else [(default, own)[looks - 1]])


def test_a_probe_that_fails_is_no_error(compilers: Compilers, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> int:
        raise RuntimeError("no such device")

    monkeypatch.setattr(mlx_folder, "run_probe", run)
    process = compilers.process(Folders([compilers.folder / "ptx"], compilers.folder / "ptx"))
    assert process.prepare(PROBE) is not None
    assert "no such device" in process.failures["the folder of compiled code"]


class Compilers:
    """Compilers that share a folder, as processes do, and count what NVRTC is asked for."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.compiled = folder, []
        self.error: BaseException | None = None
        self.started = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        monkeypatch.setattr(compiler.nvrtc, "compile_kernel", self._compile)

    def _compile(self, text: str, kernel: str, architecture: str, include: tuple[str, ...]) -> Code:
        self.compiled.append(kernel)
        self.started.set()
        assert self.go_on.wait(30)
        if self.error is not None:
            raise self.error
        return Code(digest(text).encode(), kernel)

    def process(self, folders: Folders | None = None) -> Compiler:
        store = CodeStore(self.folder / "store", ("device",))
        return Compiler("sm_90a", (), store, folders or Folders([self.folder / "ptx"]))


@pytest.fixture
def compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compilers:
    return Compilers(tmp_path, monkeypatch)


def test_a_kernel_is_compiled_once_for_all_processes(compilers: Compilers) -> None:
    first, second = compilers.process(), compilers.process()
    code = first.prepare(PROBE)
    assert code is not None
    assert first.prepare(PROBE) == second.prepare(PROBE) == code
    assert compilers.compiled == [PROBE.qualified]
    assert (compilers.folder / "ptx" / f"{PROBE.module}.ptx").is_file()
    assert first.prepared == (PROBE.module,)


def test_damaged_code_is_compiled_anew(compilers: Compilers) -> None:
    code = compilers.process().prepare(PROBE)
    for path in compilers.folder.rglob("*.code"):
        path.write_bytes(path.read_bytes()[:-3])
    assert compilers.process().prepare(PROBE) == code
    assert len(compilers.compiled) == 2


def test_what_does_not_compile_is_left_to_mlx(compilers: Compilers) -> None:
    compilers.error = nvrtc.CompileError("line 3: what?")
    process = compilers.process()
    assert process.prepare(PROBE) is None
    assert process.failures == {PROBE.function: "line 3: what?"}
    assert not (compilers.folder / "ptx").exists()


def test_where_mlxs_folder_cannot_be_written_mlx_compiles(compilers: Compilers) -> None:
    (compilers.folder / "ptx").write_text("no folder")
    process = compilers.process()
    assert process.prepare(PROBE) is None
    assert str(compilers.folder / "ptx") in process.failures[PROBE.function]


def test_who_needs_what_a_thread_compiles_waits_for_it(compilers: Compilers) -> None:
    compilers.go_on.clear()
    process = compilers.process()
    process.begin(PROBE)
    assert compilers.started.wait(30)
    found: list[str | None] = []
    waiting = threading.Thread(target=lambda: found.append(process.prepare(PROBE)))
    waiting.start()
    compilers.go_on.set()
    waiting.join(30)
    assert found[0] is not None
    assert compilers.compiled == [PROBE.qualified]


def test_after_an_interrupt_the_next_call_begins_anew(compilers: Compilers) -> None:
    process = compilers.process()
    compilers.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        process.prepare(PROBE)
    compilers.error = None
    assert process.prepare(PROBE) is not None
    assert process.failures == {}


def test_what_is_cancelled_is_compiled_when_it_is_needed(compilers: Compilers) -> None:
    process = compilers.process()
    compilers.go_on.clear()
    many = [dataclasses.replace(PROBE, name=f"probe_{i}") for i in range(3 * compiler._THREADS)]
    for instance in many:
        process.begin(instance)
    process.cancel()
    compilers.go_on.set()
    assert len(compilers.compiled) <= compiler._THREADS
    assert process.prepare(many[-1]) is not None
    assert compilers.compiled.count(many[-1].qualified) == 1
    process.begin(PROBE)  # in new threads
    assert process.prepare(PROBE) is not None


def test_whatever_goes_wrong_mlx_compiles(compilers: Compilers) -> None:
    process = compilers.process()
    compilers.error = MemoryError("of this machine")
    assert process.prepare(PROBE) is None
    assert "of this machine" in process.failures[PROBE.function]
    # A dtype whose name nobody knows.
    complex_input = dataclasses.replace(PROBE, name="other", inputs=((mx.complex64, True), (mx.float32, True)))
    process.begin(complex_input)
    assert process.prepare(complex_input) is None


def cuda_device(process: Compiler, launches: list[int]) -> KernelDevice:
    def build(**_description: object) -> Callable[..., list[mx.array]]:
        def launch(*, inputs: list[mx.array], **_arguments: object) -> list[mx.array]:
            launches.append(inputs[0].size)
            return [twice_plus_sine(*inputs)]

        return launch

    return KernelDevice("Fake CUDA", "cuda", build, 9, process)


def test_a_check_that_has_passed_is_not_repeated_by_the_next_process(
    compilers: Compilers, make_kernel: Callable[..., Kernel]
) -> None:
    x = mx.random.normal((4, 8))
    for turn in range(3):
        registry._kernels.pop("sample", None)  # as in another process
        kernel, launches = make_kernel("sample", metal=None, cuda="the body"), []
        if turn == 2:  # compared with something else
            kernel.definition = lambda x: mx.sin(x) + x + x
        with use_device(cuda_device(compilers.process(), launches)):
            assert mx.allclose(kernel(x), twice_plus_sine(x)).item()
        assert (len(launches) > 1) == (turn != 1), "one launch is the call itself, more are the check"
    assert len(compilers.compiled) == 1


def test_a_check_that_has_failed_is_never_kept(compilers: Compilers, make_kernel: Callable[..., Kernel]) -> None:
    for _ in range(2):
        registry._kernels.pop("sample", None)  # as in another process
        kernel = make_kernel("sample", metal=None, cuda="the body", reference=lambda x: x)
        with use_device(cuda_device(compilers.process(), [])), pytest.warns(UserWarning, match="differs"):
            kernel(mx.random.normal((4, 8)))
    assert not list(compilers.folder.rglob("*.passed"))


def test_the_full_check_runs_every_case_anew_and_leaves_no_compilation_to_mlx(
    compilers: Compilers, make_kernel: Callable[..., Kernel]
) -> None:
    kernel, launches = make_kernel("sample", metal=None, cuda="the body"), []
    for process in (compilers.process(), compilers.process()):
        launches.clear()
        with use_device(cuda_device(process, launches)):
            report = check_kernel(kernel)
        assert report.status == "ok"
        assert len(launches) == len(report.cases) == 12
        assert len(process.prepared) == 6, "three dtypes, in even and in odd sizes"
    assert len(compilers.compiled) == 6


def test_ahead_kernels_are_compiled_and_not_run(compilers: Compilers, make_kernel: Callable[..., Kernel]) -> None:
    kernel, launches, process = make_kernel("sample", metal=None, cuda="the body"), [], compilers.process()
    x = mx.random.normal((4, 8))
    with use_device(cuda_device(process, launches)):
        with compiling_ahead():
            assert not mx.any(kernel(x)).item()
        process.prepare(kernel._fused[next(iter(kernel._fused))].instance((x,), kernel.launch(x)))
        assert launches == []
        assert len(compilers.compiled) == 1
        assert mx.allclose(kernel(x), twice_plus_sine(x)).item()
    assert len(compilers.compiled) == 1
    with use_device(None), compiling_ahead():  # without such a device, kernels are what they always are
        assert mx.allclose(kernel(x), twice_plus_sine(x)).item()


_PROCESS = """
import sys
import mlx.core as mx
from core.kernels import swiglu
from core.kernels.device import current_device
from core.kernels.cuda_code import compiler
if sys.argv[1] == "compiled":
    def refuse(*arguments): raise SystemExit("asked to compile")
    compiler.nvrtc.compile_kernel = refuse
x = mx.random.normal((3, 64)).astype(mx.bfloat16)
mx.eval(swiglu(x))
device = current_device()
print(device.compiler.failures, *device.compiler.prepared)
"""


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device")
def test_mlx_takes_our_code_and_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "CORE_KERNEL_CACHE": str(tmp_path / "kernels"),
        "MLX_PTX_CACHE_DIR": str(tmp_path / "mlx"),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }

    def process(what: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _PROCESS, what]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    first = process("not yet")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("{} custom_kernel_swiglu"), first.stdout
    assert process("compiled").stdout == first.stdout
    module = first.stdout.split()[1]
    code = tmp_path / "mlx" / f"{module}.ptx"
    assert code.is_file()
    # MLX loads what lies there: nonsense in its place, which nobody checks, stops it.
    sitecustomize = (
        "import core.kernels.cuda_code.mlx_folder as f\nf._put = lambda path, data: path.write_bytes(b'no')\n"
    )
    (tmp_path / "nonsense.py").write_text(sitecustomize + _PROCESS)
    broken = subprocess.run(
        [sys.executable, "-W", "always", str(tmp_path / "nonsense.py"), "not yet"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Failed to load" in broken.stdout + broken.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device")
def test_without_any_settings_mlx_looks_in_our_folder_and_children_do_not_hear_of_it(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MLX_PTX_CACHE_DIR"}
    environment |= {"CORE_KERNEL_CACHE": str(tmp_path / "kernels"), "TMPDIR": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    program = _PROCESS + "import os; print(device.compiler._folders.paths, os.environ.get('MLX_PTX_CACHE_DIR'))"
    for what in ("not yet", "compiled"):
        done = subprocess.run(
            [sys.executable, "-c", program, what], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("{} custom_kernel_swiglu"), done.stdout
        own = tmp_path / "kernels" / f"mlx-{mlx_folder.MLX_VERSION}"
        assert done.stdout.endswith(f"[{own!r}] None\n"), done.stdout
