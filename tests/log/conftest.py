"""Logs to test with; see `log_sample.py` for what is in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from log_sample import Log


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of one built log that no test changes."""
    return Log(tmp_path_factory.mktemp("log")).build()
