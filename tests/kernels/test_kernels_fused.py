"""A source is used after it agreed with the reference, and never after it did not."""

from __future__ import annotations

import threading
import time
import warnings

import mlx.core as mx
import pytest
from conftest import FakeGPU, sample_launch, twice_plus_sine

from core.kernels import KernelWarning, Launch, Tolerance, fused
from core.kernels.device import KernelDevice, inference, reference_only, use_device

X = mx.array([[0.5, -1.0, 2.0], [3.0, 0.0, -0.25]])


def equal(a: mx.array, b: mx.array) -> bool:
    return bool(mx.array_equal(a, b).item())


def marked(x: mx.array) -> mx.array:
    """Right within the tolerance, and recognisable; its own gradient is zero."""
    return mx.stop_gradient(twice_plus_sine(x) * (1 + 2e-6))


def test_without_device_the_reference_runs(make_kernel) -> None:
    with use_device(None):
        assert equal(make_kernel()(X), twice_plus_sine(X))


def test_source_gets_what_mlx_needs(make_kernel) -> None:
    gpu = FakeGPU(marked)
    kernel = make_kernel("plugin.sample")
    with use_device(gpu):
        assert equal(kernel(X), marked(X))
    assert gpu.builds == [
        {"name": "plugin_sample", "input_names": ["x"], "output_names": ["out"], "source": "the body"}
    ]
    assert gpu.launches[-1] == {
        "output_shapes": [(2, 3)],
        "output_dtypes": [mx.float32],
        "grid": (6, 1, 1),
        "threadgroup": (32, 1, 1),
        "template": [("T", mx.float32), ("EVEN", True)],
    }


def test_checked_once_for_each_dtype_and_class_of_shapes(make_kernel) -> None:
    gpu = FakeGPU(marked)
    kernel = make_kernel()
    large, odd = mx.zeros((4, 6)), mx.zeros((3, 3))
    with use_device(gpu):
        for x, checks in ((large, 1), (large, 0), (mx.zeros((2, 8)), 0), (odd, 1), (odd, 0)):
            before = len(gpu.launches)
            kernel(x)
            assert len(gpu.launches) - before == checks + 1
        before = len(gpu.launches)
        kernel(large.astype(mx.float16))
        kernel(large.astype(mx.float16))
        assert len(gpu.launches) - before == 3
    assert len(gpu.builds) == 1


def one_element_off(x: mx.array) -> mx.array:
    result = twice_plus_sine(x).reshape(-1)
    return (result + 0.01 * (mx.arange(result.size) == result.size - 1)).astype(x.dtype).reshape(x.shape)


def raises(*_inputs: mx.array) -> mx.array:
    raise RuntimeError("launch refused\nand a long log")


BROKEN = {
    "wrong numbers": (FakeGPU(lambda x: x + 0), "differs from its reference by "),
    "one element": (FakeGPU(one_element_off), r"differs from its reference by 0\.0(1|0999)"),
    "NaN": (FakeGPU(lambda x: x * float("nan")), "gives NaN; differs from its reference by inf"),
    "infinity": (FakeGPU(lambda x: x / 0), "differs from its reference by inf"),
    "shape": (FakeGPU(lambda x: x[None]), r"gives float32 \[1, 2\] where its reference gives float32 \[2\] on"),
    "dtype": (FakeGPU(lambda x: twice_plus_sine(x).astype(mx.float16)), "gives float16 "),
    "compile": (
        FakeGPU(marked, build_error=ValueError("expected ';'\nlog")),
        "fails with ValueError: expected ';'. The",
    ),
    "launch": (FakeGPU(raises), r"fails with RuntimeError: launch refused\. The"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_source_warns_once_and_the_numbers_are_right(make_kernel, fault: str) -> None:
    gpu, problem = BROKEN[fault]
    kernel = make_kernel()
    with use_device(gpu):
        with pytest.warns(KernelWarning, match=problem) as caught:
            assert equal(kernel(X), twice_plus_sine(X))
        assert len(caught) == 1
        assert "kernel 'sample' (" in str(caught[0].message)
        assert "Fake GPU 9000" in str(caught[0].message)
        # No second warning (warnings are errors here), no second attempt, in any dtype, class or way of calling.
        attempts = len(gpu.builds), len(gpu.launches)
        for x in (X, X[:, :1], X.astype(mx.float16), mx.zeros((64, 3))):
            assert equal(kernel(x), twice_plus_sine(x))
            with inference():
                assert equal(kernel(x), twice_plus_sine(x))
        assert equal(mx.grad(lambda x: kernel(x).sum())(X), mx.grad(lambda x: twice_plus_sine(x).sum())(X))
        assert (len(gpu.builds), len(gpu.launches)) == attempts


def test_source_wrong_in_one_class_of_shapes_is_found_there(make_kernel) -> None:
    kernel = make_kernel()
    gpu = FakeGPU(lambda x: marked(x) if x.size % 2 else x)
    odd, even = mx.ones((3, 3)), mx.ones((4, 4))
    with use_device(gpu):
        assert equal(kernel(odd), marked(odd))
        with pytest.warns(KernelWarning):
            assert equal(kernel(even), twice_plus_sine(even))
        assert equal(kernel(odd), twice_plus_sine(odd)), "not trusted any more"


def test_launch_that_fails_after_the_check_falls_back(make_kernel) -> None:
    kernel = make_kernel()
    gpu = FakeGPU(lambda x: marked(x) if len(gpu.launches) < 4 else raises())
    with use_device(gpu):
        while len(gpu.launches) < 3:
            assert equal(kernel(X), marked(X))
        with pytest.warns(KernelWarning, match="cannot be launched: RuntimeError: launch refused"):
            assert equal(kernel(X), twice_plus_sine(X))
        assert equal(kernel(X), twice_plus_sine(X))


def test_warning_as_error_is_raised_once_and_leaves_the_reference(make_kernel) -> None:
    kernel = make_kernel()
    with use_device(FakeGPU(raises)):
        with pytest.raises(KernelWarning):
            kernel(X)
        assert equal(kernel(X), twice_plus_sine(X))


def test_kernels_and_devices_are_judged_one_by_one(make_kernel) -> None:
    first, second = make_kernel("first"), make_kernel("second")
    good, bad = FakeGPU(marked), FakeGPU(raises)
    with use_device(bad), pytest.warns(KernelWarning, match="'first'"):
        first(X)
    with use_device(good):
        assert equal(first(X), marked(X))
        assert equal(second(X), marked(X))


def test_tolerance_is_the_kernels(make_kernel) -> None:
    strict = make_kernel(tolerance={mx.float32: Tolerance(0.0, 1e-7)})
    with use_device(FakeGPU(marked)):
        with pytest.warns(KernelWarning):
            strict(X)
        half = X.astype(mx.float16)
        assert equal(strict(half), marked(half)), "the other dtypes keep the default"


def test_language_without_source_uses_the_reference(make_kernel) -> None:
    gpu = FakeGPU(raises)
    cuda = KernelDevice("Fake", "cuda", gpu.build)
    with use_device(cuda):
        assert equal(make_kernel("metal only")(X), twice_plus_sine(X))
    assert not gpu.builds


def test_unsupported_inputs_use_the_reference(make_kernel) -> None:
    gpu = FakeGPU(marked)
    kernel = make_kernel(supports=lambda x: x.dtype == mx.float32 and x.shape[0] == 2)
    with use_device(gpu):
        for x in (X.astype(mx.float16), X[:1], mx.zeros((2, 0))):
            assert equal(kernel(x), twice_plus_sine(x))
        assert not gpu.builds
        with pytest.raises(TypeError):
            kernel(X, X)
        assert equal(kernel(X), marked(X)), "a wrong call is the caller's fault, not the source's"


def test_class_that_no_sample_covers_is_checked_on_its_own_shapes(make_kernel) -> None:
    kernel = make_kernel(sample_inputs=lambda key, dtype: [])
    with use_device(FakeGPU(marked)):
        assert equal(kernel(X), marked(X))
    with use_device(FakeGPU(lambda x: x)), pytest.warns(KernelWarning, match=r"float32 \[2, 3\]"):
        kernel(X)


def take_twice(x: mx.array, index: mx.array) -> mx.array:
    return 2 * mx.take(x, index)


def take_launch(x: mx.array, index: mx.array) -> Launch:
    return Launch((index.size, 1, 1), (32, 1, 1), index.shape, x.dtype)


def test_integer_inputs(make_kernel) -> None:
    def samples(key: mx.array, dtype: mx.Dtype) -> list[tuple[mx.array, ...]]:
        return [(mx.random.normal((9,), key=key).astype(dtype), mx.array([0, 8, 4]))]

    kernel = make_kernel(reference=take_twice, launch=take_launch, sample_inputs=samples)
    blind = make_kernel("blind", reference=take_twice, launch=take_launch, sample_inputs=lambda key, dtype: [])
    x, index = mx.arange(10.0), mx.array([1, 1, 7])
    gpu = FakeGPU(lambda x, index: mx.stop_gradient(take_twice(x, index)))
    with use_device(gpu):
        gradient = mx.grad(lambda x: (kernel(x, index) * mx.array([1.0, 2.0, 3.0])).sum())(x)
        assert gradient.tolist() == [0, 6, 0, 0, 0, 0, 0, 6, 0, 0]
        assert gpu.launches
        with pytest.warns(KernelWarning, match="no sample of this class"):
            assert equal(blind(x, index), take_twice(x, index))


def test_random_state_is_left_alone(make_kernel) -> None:
    mx.random.seed(7)
    expected = mx.random.uniform(shape=(3,)).tolist()
    mx.random.seed(7)
    with use_device(FakeGPU(marked)):
        make_kernel()(X)
    assert mx.random.uniform(shape=(3,)).tolist() == expected


def test_an_unwritten_output_cannot_look_right(make_kernel) -> None:
    """The source runs before its reference, on numbers of which no buffer can hold the result yet."""
    events, seen = [], []

    def reference(x: mx.array) -> mx.array:
        events.append("reference")
        return twice_plus_sine(x)

    def source(x: mx.array) -> mx.array:
        events.append("source")
        seen.append(x.reshape(-1)[0].item())
        return twice_plus_sine(x)

    kernel = make_kernel(reference=reference)
    for _ in range(2):
        with use_device(FakeGPU(source)):
            kernel(mx.zeros((4, 4)))
    assert events == ["source", "reference", "source"] * 2
    assert len(set(seen)) == 3, "two checks on different numbers, and the zeros"


def test_shapes_seen_are_not_kept_for_ever(make_kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_MAX_PLANS", 4)
    gpu, kernel = FakeGPU(marked), make_kernel()
    with use_device(gpu):
        kernel(mx.zeros((1, 8)))
        checked = len(gpu.launches)
        for n in range(2, 12):
            assert equal(kernel(mx.zeros((n, 8))), mx.zeros((n, 8)))
        assert len(gpu.launches) == checked + 10, "no check anew"
    assert len(kernel._fused[gpu]._plans) <= 4


@pytest.mark.parametrize(
    "transform",
    [
        mx.compile,
        lambda f: mx.compile(mx.compile(f)),
        mx.vmap,
        mx.checkpoint,
        lambda f: lambda x: mx.vjp(f, [x], [mx.ones_like(x)])[0][0],
        lambda f: lambda x: mx.compile(mx.value_and_grad(lambda x: f(x).sum()))(x)[0],
    ],
    ids=["compile", "nested", "vmap", "checkpoint", "vjp", "value_and_grad"],
)
@pytest.mark.parametrize("good", [True, False], ids=["good", "broken"])
def test_first_use_inside_a_transformation(make_kernel, transform, good: bool) -> None:
    gpu = FakeGPU(marked if good else lambda x: x)
    kernel = make_kernel()
    function = transform(lambda x: kernel(x))
    with use_device(gpu), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first, second = function(X), function(X)
    expected = transform(marked if good else twice_plus_sine)(X)
    assert mx.allclose(first, expected, rtol=1e-7).item()
    assert equal(first, second)
    assert [w.category for w in caught] == ([] if good else [KernelWarning])
    assert gpu.launches


def loss(f):
    return lambda x: (f(x) ** 2 * mx.arange(x.size).reshape(x.shape)).sum()


def test_gradient_is_the_references(make_kernel) -> None:
    kernel = make_kernel()
    assert not mx.grad(loss(marked))(X).any().item(), "the source's own gradient would be zero"
    expected = mx.grad(loss(twice_plus_sine))(X)
    second = mx.grad(lambda x: mx.grad(lambda x: twice_plus_sine(x).sum())(x).sum())(X)
    with use_device(FakeGPU(marked)):
        for gradient in (
            mx.grad(loss(kernel)),
            mx.compile(mx.grad(loss(kernel))),
            mx.grad(mx.checkpoint(loss(kernel))),
        ):
            for _ in range(2):
                assert mx.allclose(gradient(X), expected, rtol=1e-5, atol=1e-5).item()
        assert mx.allclose(mx.grad(lambda x: mx.grad(lambda x: kernel(x).sum())(x).sum())(X), second, atol=1e-6).item()
        with inference():
            assert not mx.grad(lambda x: kernel(x).sum())(X).any().item(), "there is none inside"


def test_gradients_of_two_inputs(make_kernel) -> None:
    def product(a: mx.array, b: mx.array) -> mx.array:
        return a * mx.exp(b)

    def samples(key: mx.array, dtype: mx.Dtype) -> list[tuple[mx.array, ...]]:
        return [tuple(mx.random.normal((2, 3, 5), key=key).astype(dtype))]

    kernel = make_kernel(reference=product, launch=lambda a, b: sample_launch(a), sample_inputs=samples)
    gpu = FakeGPU(lambda a, b: mx.stop_gradient(product(a, b)))
    a, b = X, X + 1
    with use_device(gpu):
        for argnums in (0, 1, (0, 1)):
            actual = mx.grad(lambda a, b: (kernel(a, b) ** 2).sum(), argnums)(a, b)
            expected = mx.grad(lambda a, b: (product(a, b) ** 2).sum(), argnums)(a, b)
            for x, y in zip(actual, expected, strict=True):
                assert mx.allclose(x, y, rtol=1e-5).item()
    assert gpu.launches


def test_training_loop_is_the_references(make_kernel) -> None:
    kernel = make_kernel()

    def train(f, compiled: bool) -> mx.array:
        step = mx.value_and_grad(lambda w: ((f(X @ w) - 1) ** 2).mean())
        step = mx.compile(step) if compiled else step
        w = mx.ones((3, 2))
        for _ in range(10):
            value, gradient = step(w)
            w = w - 0.01 * gradient
        mx.eval(w, value)
        return w

    expected = train(twice_plus_sine, False)
    with use_device(FakeGPU(marked)):
        for compiled in (False, True):
            assert mx.allclose(train(kernel, compiled), expected, rtol=1e-4, atol=1e-5).item()


def test_reference_only_inside_a_device(make_kernel) -> None:
    kernel = make_kernel()
    with use_device(FakeGPU(marked)):
        with reference_only():
            assert equal(kernel(X), twice_plus_sine(X))
            assert equal(mx.vmap(kernel)(X), twice_plus_sine(X))
        assert equal(kernel(X), marked(X))


@pytest.mark.parametrize("good", [True, False], ids=["good", "broken"])
def test_threads_check_once(make_kernel, good: bool) -> None:
    def slow(x: mx.array) -> mx.array:
        time.sleep(0.01)
        return marked(x) if good else x

    gpu, kernel = FakeGPU(slow), make_kernel()
    barrier, results = threading.Barrier(4), []

    def work() -> None:
        with use_device(gpu):
            barrier.wait()
            results.append(kernel(X).tolist())

    threads = [threading.Thread(target=work) for _ in range(4)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [(marked if good else twice_plus_sine)(X).tolist()] * 4
    assert [w.category for w in caught] == ([] if good else [KernelWarning])
    # One sample is of X's class; a good source then runs for every thread.
    assert len(gpu.launches) == (1 + 4 if good else 1)
    assert len(gpu.builds) == 1
