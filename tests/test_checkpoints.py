"""A state on disk, written beside the work that goes on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from curate.errors import DiskFull
from curate.pipeline import checkpoints
from curate.pipeline.checkpoints import CheckpointWriter, load_state, save_state


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors count as a GPU's."""
    monkeypatch.setattr(checkpoints, "_is_elsewhere", lambda tensor: True)
    monkeypatch.setattr(checkpoints, "_spare_memory", lambda: 1 << 40)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is written before this is set."""
    event = threading.Event()

    def when_let(state: Mapping[str, Any], path: Path) -> None:
        assert event.wait(30)
        save_state(state, path)

    monkeypatch.setattr(checkpoints, "save_state", when_let)
    return event


def example() -> dict[str, Any]:
    weight = torch.arange(6.0).reshape(2, 3)
    parts = [{"step": torch.tensor(3.0)}, {"betas": (0.9, 0.95), "name": None}]
    return {"head": weight, "tied": weight, "rows": weight.T, "parts": parts, "round": 2}


def test_a_state_is_written_as_it_was(
    elsewhere: None, held: threading.Event, tmp_path: Path
) -> None:
    """Whatever becomes of its tensors and lists while the file is written."""
    state, done = example(), list[str]()
    save_state(state, tmp_path / "expected")
    with CheckpointWriter() as writer:
        writer.write(state, tmp_path / "one", lambda: done.append("one"))
        state["head"].zero_()
        state["parts"].clear()
        writer.look()
        assert not done
        assert not (tmp_path / "one").exists()
        held.set()
    assert done == ["one"]
    found, expected = load_state(tmp_path / "one"), load_state(tmp_path / "expected")
    for name in ("head", "tied", "rows"):
        assert torch.equal(found[name], expected[name])
    assert found["head"].data_ptr() == found["tied"].data_ptr()  # once in the file, too
    assert found["parts"] == expected["parts"]
    assert found["round"] == 2


def test_one_is_finished_before_the_next(
    elsewhere: None, held: threading.Event, tmp_path: Path
) -> None:
    done: list[str] = []
    with CheckpointWriter() as writer:
        writer.write(example(), tmp_path / "one", lambda: done.append("one"))
        held.set()
        writer.write(example(), tmp_path / "two", lambda: done.append("two"))
        assert done == ["one"]
        writer.finish()
        writer.finish()
        assert done == ["one", "two"]


def test_a_signal_while_it_is_waited_for_leaves_nothing_undone(
    elsewhere: None, held: threading.Event, tmp_path: Path
) -> None:
    def stop(*_: object) -> None:
        held.set()
        raise KeyboardInterrupt

    done: list[str] = []
    before = signal.signal(signal.SIGALRM, stop)
    try:
        with pytest.raises(KeyboardInterrupt), CheckpointWriter() as writer:
            writer.write(example(), tmp_path / "one", lambda: done.append("one"))
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            writer.finish()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert done == ["one"]


def test_what_lies_here_is_written_at_once(tmp_path: Path) -> None:
    done: list[str] = []
    with CheckpointWriter() as writer:
        writer.write(example(), tmp_path / "one", lambda: done.append("one"))
        assert done == ["one"]


def test_what_memory_has_no_room_for_is_written_at_once(
    elsewhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three tensors, one of them twice: 24 and 24 and 4 bytes."""
    for spare, at_once in ((4 * 52 - 1, True), (4 * 52, False)):
        monkeypatch.setattr(checkpoints, "_spare_memory", lambda spare=spare: spare)
        done: list[str] = []
        with CheckpointWriter() as writer:
            writer.write(example(), tmp_path / "one", lambda done=done: done.append("one"))
            assert bool(done) == at_once


def test_a_failure_comes_out_where_it_is_waited_for(
    elsewhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(state: Mapping[str, Any], path: Path) -> None:
        raise DiskFull(path, 0)

    monkeypatch.setattr(checkpoints, "save_state", refused)
    done: list[str] = []
    with pytest.raises(DiskFull), CheckpointWriter() as writer:
        writer.write(example(), tmp_path / "one", lambda: done.append("one"))
    with pytest.raises(ValueError, match="first"), CheckpointWriter() as writer:
        writer.write(example(), tmp_path / "one", lambda: done.append("one"))
        raise ValueError("what came first is what is told")
    assert not done


@pytest.mark.parametrize(
    ("limit", "spare"), [(None, 2048 * 1024), ("max", 2048 * 1024), ("900000", 800000)]
)
def test_spare_memory_is_the_machines_or_its_groups(
    limit: str | None, spare: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  9999 kB\nMemAvailable:    2048 kB\n")
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("100000\n")
    monkeypatch.setattr(checkpoints, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(checkpoints, "_CONTROL_GROUP", tmp_path)
    assert checkpoints._spare_memory() == spare
    (tmp_path / "meminfo").unlink()
    assert checkpoints._spare_memory() == 0
