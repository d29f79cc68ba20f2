"""Tests that only CI runs, for their time: ``CI=true make test`` runs them as well."""

from __future__ import annotations

import os

import pytest

only_in_ci = pytest.mark.skipif(not os.environ.get("CI"), reason="takes long; CI runs it, and CI=true make test")
