"""Files that an unfinished run cannot go on without: gone or damaged, they are named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from run_helpers import Fault, interrupted_after, run_tiny

from curate.errors import OutputFailed
from curate.pipeline.folder import START_AGAIN


def kept_state(run: Path) -> list[Path]:
    """The files of an unfinished run that it cannot go on without."""
    every = (run / "state").rglob("*.*")
    kept = [path for path in every if path.suffix in (".arrow", ".parquet")]
    kept = [path for path in kept if ".scored." not in path.name]  # of which decisions were made
    assert {path.parent.name for path in kept} == {"tokens", "rounds"}
    return kept


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "gone"])
def test_a_file_of_its_own_that_is_gone_or_cut_off_is_named(
    tmp_path: Path, fault: Fault, cut: bool
) -> None:
    """A fragment of decisions that is gone would be passed over in silence."""
    inputs = interrupted_after(fault, "scoring", tmp_path)
    for path in kept_state(tmp_path / "out"):
        content = path.read_bytes()
        if cut:
            path.write_bytes(content[:-1])
        else:
            path.unlink()
        with pytest.raises(OutputFailed) as error:
            run_tiny(inputs, tmp_path / "out")
        assert error.value.problem == f"The run's own file {path} is gone or damaged."
        assert error.value.remedy == START_AGAIN
        path.write_bytes(content)
    run_tiny(inputs, tmp_path / "out")


def test_its_own_tokenizer_is_gone(tmp_path: Path, fault: Fault) -> None:
    inputs = interrupted_after(fault, "tokens", tmp_path, method="random")
    shutil.rmtree(tmp_path / "out/state/tokenizer")
    with pytest.raises(OutputFailed) as error:
        run_tiny(inputs, tmp_path / "out", method="random")
    place = tmp_path / "out/state/tokenizer"
    assert error.value.problem == f"The run's own tokenizer {place} cannot be read."
    assert error.value.remedy == START_AGAIN


def test_times_are_not_worth_a_run(tmp_path: Path, fault: Fault) -> None:
    inputs = interrupted_after(fault, "tokens", tmp_path, method="random")
    (tmp_path / "out/state/times.json").write_bytes(b'{"stages": \xff')
    run = run_tiny(inputs, tmp_path / "out", method="random")
    assert run.sql("SELECT stage_seconds IS NOT NULL FROM run") == [(True,)]
