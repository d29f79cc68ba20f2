"""Requirements on core are answered as ``packaging`` answers them, and the usual ones without importing it."""

from __future__ import annotations

from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

import core
from core.registry import requirement as requirement_module
from core.registry.requirement import _fits_plainly, refusal
from core.scaffold.names import requirement
from tests.registry.children import child

releases = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(lambda parts: ".".join(map(str, parts)))
comparisons = st.tuples(st.sampled_from([">=", "<=", ">", "<", "==", "!="]), releases).map("".join)
lines = st.lists(comparisons, max_size=3).map(lambda parts: "CoreLM" + ",".join(parts))


@given(line=lines, version=releases)
def test_releases_compare_as_packaging_compares_them(line: str, version: str) -> None:
    assert _fits_plainly(line, version) is Requirement(line).specifier.contains(version, prereleases=True)


@pytest.mark.parametrize(
    ("line", "version", "excluded"),
    [
        ("corelm>=0.1,<0.2", "0.1.9", False),
        ("corelm>=0.1,<0.2", "0.2.0", True),
        ("corelm >= 0.1, < 0.2", "0.2", True),
        ("corelm[cpu]~=0.1.0", "0.2.0", True),
        ("corelm==0.1.*", "0.1.7", False),
        ("corelm<0.2", "0.2.0rc1", True),
        ("corelm>=0.3; python_version < '3'", "0.1.0", False),
        ("corelm>=0.3; extra == 'test'", "0.1.0", False),
        ("corelm-olmo2>=7", "0.1.0", False),
        ("corelm>=", "0.1.0", True),
    ],
)
def test_what_else_a_line_can_say(line: str, version: str, excluded: bool) -> None:
    with mock.patch.object(requirement_module, "__version__", version):
        assert (refusal(["numpy>=2", line]) is not None) is excluded


def test_the_range_that_new_plugins_ask_for() -> None:
    assert requirement("0.1.0") == "corelm>=0.1,<0.2"
    assert requirement("0.12.3") == "corelm>=0.12,<0.13"
    assert requirement("1.4.0") == "corelm>=1.4,<2"
    assert requirement("0.2.0rc1") == "corelm>=0.2.0rc1,<0.3"
    facts = child(
        """
        import sys
        from core.registry.requirement import refusal
        report(refused=[refusal([line]) for line in sys.argv[1:]], heavy="packaging" in sys.modules)
        """,
        requirement(core.__version__),
        "corelm>=7",
    )
    assert facts["refused"] == [None, f"it requires corelm>=7, and this is corelm {core.__version__}"]
    assert not facts["heavy"]
