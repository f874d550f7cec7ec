import json
import threading
from pathlib import Path

import pytest
from run_helpers import run_tiny, write_plain_pool

from curate import clock
from curate.clock import doing, taken, timing


class Time:
    """Passes when it is told to."""

    now = 100.0


@pytest.fixture
def time(monkeypatch):
    time = Time()
    monkeypatch.setattr(clock.time, "monotonic", lambda: time.now)
    return time


def test_each_moment_belongs_to_the_innermost_activity(time):
    with timing():
        time.now += 1
        with doing("model"):
            time.now += 2
            with doing("read"):
                time.now += 4
            time.now += 8
            with pytest.raises(ValueError, match="x"), doing("read"):
                time.now += 16
                raise ValueError("x")
        time.now += 32
        assert taken() == {"other": 33, "model": 10, "read": 20}
        with doing("model"):
            time.now += 64
            assert taken() == {"other": 0, "model": 64}
            time.now += 128
        assert taken() == {"model": 128, "other": 0}
    assert taken() == {}


def test_other_threads_are_not_waited_for(time):
    def work():
        with doing("tokenize"):
            time.now += 5

    with timing():
        background = threading.Thread(target=work)
        with doing("model"):
            background.start()
            background.join()
        assert taken() == {"other": 0, "model": 5}


def test_without_a_clock_nothing_is_counted():
    with doing("model"):
        pass
    assert taken() == {}


def test_a_run_says_where_its_time_went(tmp_path: Path):
    run = run_tiny(write_plain_pool(tmp_path), tmp_path / "out")
    [(activities,)] = run.sql("SELECT activity_seconds FROM run")
    activities = json.loads(activities)
    assert activities.keys() >= {"model", "tokenize", "pack", "read", "select", "write", "other"}
    assert min(activities.values()) >= 0
