"""A library of products comes under MLX in whatever order things are imported, and nothing else in the process sees it.

Each test has a process of its own, because a process binds once.
"""

from __future__ import annotations

import os

import pytest

from tests.blas.process import PRODUCT, needs_library
from tests.registry.children import child

pytestmark = needs_library


@pytest.mark.parametrize(
    "first",
    ["import mlx.core", "import core.nn", "import mlx.core as mx; mx.eval(mx.ones((9, 9)) @ mx.ones((9, 9)))"],
    ids=["mlx first", "core first", "mlx has multiplied"],
)
@pytest.mark.parametrize("eager", ["", "1"])
def test_mlx_before_and_after_core(first: str, eager: str) -> None:
    """With ``LD_BIND_NOW`` the dynamic linker fills all slots at once."""
    code = f"{PRODUCT}\n{first}\nimport mlx.core, core.nn\nreport(status=status(), right=product())"
    facts = child(code, environment={"LD_BIND_NOW": eager})
    used, text = facts["status"]
    assert used
    assert text.startswith("OpenBLAS ")
    assert facts["right"]


def test_mlx_calls_what_is_in_the_slots() -> None:
    """A function of our own takes the library's place: MLX calls it, and its wrong product is noticed."""
    facts = child(
        f"""{PRODUCT}
import ctypes, warnings
import core.nn
from core import blas
from core.blas import binding
from core.blas.imports import Imports
from core.blas.memory import Memory
from core.blas.product import FUNCTIONS
calls = []
def sgemm(*arguments):
    calls.append(list(arguments[3:6]))
function = ctypes.CFUNCTYPE(None, *[ctypes.c_int] * 6)(sgemm)
before = dict(binding._before)
slots = list(before)
for slot in slots:
    Memory().write_pointer(slot, ctypes.cast(function, ctypes.c_void_p).value)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    blas.check()
wrong = len(calls)
report(
    said=[str(warning.message) for warning in caught], calls=calls, status=status(), right=product(),
    quiet=len(calls) == wrong, restored=[Memory().read_pointer(slot) for slot in slots] == list(before.values()),
    names=sorted(set(Imports(*Memory().files("libmlx.so"), Memory()).slots(FUNCTIONS).values())),
)
"""
    )
    assert facts["calls"][0] == [5, 3, 7]
    (said,) = facts["said"]
    assert "computes wrong products with" in said
    assert facts["status"][0] is False
    assert "MLX computes wrong products" in facts["status"][1]
    assert facts["right"]
    assert facts["quiet"], "MLX has its own library back"
    assert facts["restored"]
    assert facts["names"] == ["cblas_cgemm", "cblas_dgemm", "cblas_sgemm"]


@pytest.mark.parametrize("first", ["numpy", "core.nn"])
def test_numpy_keeps_its_own(first: str) -> None:
    facts = child(
        f"""{PRODUCT}
import importlib
importlib.import_module({first!r})
import core.nn, numpy as np
a, b = np.arange(12000.0).reshape(40, 300) % 7, np.arange(15000.0).reshape(300, 50) % 5
def numpy_right():
    return [bool((a.astype(t) @ b.astype(t) == np.einsum("ik,kj->ij", a, b)).all()) for t in ("f4", "f8", "c8", "c16")]
before = numpy_right()
report(status=status(), right=product(), numpy=before + numpy_right(), own=mapped("numpy.libs/"))
"""
    )
    assert facts["status"][0]
    assert facts["right"]
    assert facts["numpy"] == [True] * 8


def test_a_slot_that_cannot_be_written_undoes_the_others() -> None:
    facts = child(
        f"""{PRODUCT}
from core.blas import binding, memory
import mlx.core
write, count = memory.Memory.write_pointer, 0
written = []
def refuse(self, address, value):
    written.append(address)
    if len(written) == 2:
        raise memory.MemoryDoubtError("no")
    write(self, address, value)
memory.Memory.write_pointer = refuse
import core.nn
report(used=binding.bind().used, right=product(), same=written[0] == written[2], writes=len(written))
"""
    )
    assert facts == {"used": False, "right": True, "same": True, "writes": 3}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_children() -> None:
    """One that computes before its parent does may; one that comes later may do everything but use a model."""
    facts = child(
        f"""{PRODUCT}
import os
import core.nn, numpy as np
from core import device
from core.errors import UsageError
def fork(action):
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            code = 0 if action() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def large():
    return bool(((np.ones((300, 300), "f4") @ np.ones((300, 300), "f4")) == 300).all())
def use():
    device.check_process()
    return product()
def refused():
    try:
        device.check_process()
    except UsageError:
        return True
early = fork(use)
used = use()
report(early=early, used=used, numpy=fork(large), refused=fork(refused), again=product() and large())
"""
    )
    assert facts == {"early": 0, "used": True, "numpy": 0, "refused": 0, "again": True}


def test_threads_are_as_many_as_may_run() -> None:
    code = (
        "import core.nn\nfrom core import blas\nfrom core.cores import usable_cores\n"
        "report(n=blas.bind().threads, cores=usable_cores())"
    )
    facts = child(code, environment={"OPENBLAS_NUM_THREADS": "", "OMP_NUM_THREADS": ""})
    assert facts["n"] == min(facts["cores"], 64), "OpenBLAS is built for 64 at most"
    assert child(code, environment={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": ""})["n"] == 1
    assert child(code, environment={"OPENBLAS_NUM_THREADS": "", "OMP_NUM_THREADS": "1"})["n"] == 1
    pinned = f"import os\nos.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})\n{code}"
    assert child(pinned, environment={"OPENBLAS_NUM_THREADS": "99"})["n"] == 1


def test_loading_leaves_the_process_its_cores() -> None:
    facts = child(
        """
        import os
        before = os.sched_getaffinity(0)
        import core.nn
        found = [os.sched_getaffinity(int(task)) == before for task in os.listdir("/proc/self/task")]
        report(same=all(found))
        """
    )
    assert facts["same"]


def test_importing_core_alone_loads_nothing() -> None:
    facts = child(f"{PRODUCT}\nimport core, sys\nreport(mapped=mapped('openblas'), blas='core.blas' in sys.modules)")
    assert facts == {"mapped": False, "blas": False}
