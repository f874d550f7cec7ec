"""Finished runs to verify; tests copy them before they change them."""

from __future__ import annotations

import pytest
from run_helpers import Run, shared_run

TOKEN = {"granularity": "token", "keep": 0.6, "method": "random"}


@pytest.fixture(scope="session")
def by_document(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return shared_run(tmp_path_factory)


@pytest.fixture(scope="session")
def by_token(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return shared_run(tmp_path_factory, **TOKEN)
