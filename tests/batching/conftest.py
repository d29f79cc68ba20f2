"""Small classes of capacities, so that tiny sequences cross them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.batching import groups


@pytest.fixture(autouse=True, scope="module")
def small_classes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "SMALLEST", 8)
        patch.setattr(groups, "_AHEAD", 3)
        yield
