"""An evaluation that cannot be made: two sentences, code 2, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_helpers import SMALL, small_preset, write_test  # noqa: F401
from run_helpers import Run, curate, run_tiny, shared_run, snapshot, write_plain_pool

from curate import verify

FLAGS = [
    part for key, value in SMALL.items() for part in (f"--{key.replace('_', '-')}", str(value))
]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return shared_run(tmp_path_factory)


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run over another pool."""
    place = tmp_path_factory.mktemp("stranger")
    return run_tiny(write_plain_pool(place), place / "out", method="random")


@pytest.fixture
def test_set(tmp_path: Path) -> Path:
    return write_test(tmp_path / "test.parquet")


def refused(out: Path, *more: str | Path) -> str:
    """What `curate evaluate` says as it refuses; nothing may have been written."""
    before = snapshot(out)
    result = curate("evaluate", out, *FLAGS, *more)
    assert result.exit_code == 2, (result.exit_code, result.exception, result.stderr)
    assert result.stdout == ""
    assert snapshot(out) == before
    return str(result.stderr)


def says(problem: str, remedy: str) -> str:
    return f"Error: {problem}\nTo fix: {remedy}\n"


def test_no_finished_run(tmp_path: Path, test_set: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    expected = says(
        f"There is no finished run in {empty}.", "Give the output folder of a finished curate run."
    )
    assert refused(empty, "--test", test_set) == expected
    (empty / "manifest.json").write_text("not JSON")
    assert refused(empty, "--test", test_set) == expected


def test_an_interrupted_run(finished: Run, tmp_path: Path, test_set: Path) -> None:
    run = finished.copy(tmp_path / "out")
    path = run.out / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["stages"]["complete"]
    path.write_text(json.dumps(manifest))
    assert refused(run.out, "--test", test_set) == says(
        f"There is no finished run in {run.out}.",
        "Give the output folder of a finished curate run.",
    )


def test_no_test(finished: Run) -> None:
    assert refused(finished.out) == says(
        "There is no test set to measure on.",
        "Give --test documents like the target's that the run has not seen.",
    )


def test_the_test_is_not_there(finished: Run, tmp_path: Path) -> None:
    missing = tmp_path / "none.parquet"
    assert refused(finished.out, "--test", missing) == says(
        f"The test path does not exist: {missing}.",
        "Check the spelling, or give a Parquet or JSONL file, a folder, a glob, a URL or hf:NAME.",
    )


def test_the_test_is_empty(finished: Run, tmp_path: Path) -> None:
    empty = write_test(tmp_path / "empty.parquet", ["", ""])
    assert refused(finished.out, "--test", empty) == says(
        "The test has no text: every document is empty.",
        "Give --test documents with text in column text.",
    )


def test_the_test_has_another_column(finished: Run, tmp_path: Path) -> None:
    path = tmp_path / "test.parquet"
    pq.write_table(pa.table({"body": ["river stone"]}), path)
    assert refused(finished.out, "--test", path) == says(
        'The test has no column "text" (it has: body).',
        "Name the column that holds the text with --text-column.",
    )


def test_against_no_run(finished: Run, tmp_path: Path, test_set: Path) -> None:
    assert refused(finished.out, "--test", test_set, "--against", tmp_path / "x") == says(
        f"There is no finished run in {tmp_path / 'x'}.",
        "Give the output folder of a finished curate run.",
    )


def test_against_another_pool(finished: Run, stranger: Run, test_set: Path) -> None:
    assert refused(finished.out, "--test", test_set, "--against", stranger.out) == says(
        f"The runs in {finished.out} and {stranger.out} curated different pools.",
        "Give --against runs over the same pool.",
    )


def test_against_itself(finished: Run, test_set: Path) -> None:
    assert refused(finished.out, "--test", test_set, "--against", finished.out) == says(
        f"The run in {finished.out} is named twice.",
        "Give --against other runs than the one that is evaluated, each once.",
    )


@pytest.mark.parametrize(
    ("flag", "value", "minimum", "remedy"),
    [
        ("--seeds", "0", 1, "to 3 or more"),
        ("--first-seed", "-1", 0, "to 0 or more"),
        ("--tokens", "0", 1, "higher, or leave it out"),
        ("--window", "7", 8, "higher, or leave it out"),
        ("--batch-tokens", "0", 1, "higher, or leave it out"),
        ("--threads", "0", 1, "higher, or leave it out"),
    ],
)
def test_numbers_too_low(
    finished: Run, test_set: Path, flag: str, value: str, minimum: int, remedy: str
) -> None:
    assert refused(finished.out, "--test", test_set, flag, value) == says(
        f"{flag} must be at least {minimum}, but is {value}.", f"Set {flag} {remedy}."
    )


@pytest.mark.parametrize(
    ("given", "told"), [("1,0", "1,0"), ("1,x", "1,x"), ("", "empty"), ("inf", "inf")]
)
def test_multiples(finished: Run, test_set: Path, given: str, told: str) -> None:
    assert refused(finished.out, "--test", test_set, "--multiples", given) == says(
        f"--multiples must be numbers above 0, but is {told}.",
        "Set --multiples to a list such as 1,2,4.",
    )


def test_learning_rate(finished: Run, test_set: Path) -> None:
    assert refused(finished.out, "--test", test_set, "--learning-rate", "0") == says(
        "--learning-rate must be a number above 0, but is 0.",
        "Set --learning-rate higher, or leave it out.",
    )


def test_window_beyond_the_model(finished: Run, test_set: Path) -> None:
    assert refused(finished.out, "--test", test_set, "--window", "70000") == says(
        "--window is 70000, but tiny reads at most 65536 tokens.",
        "Set --window to 65536 or less.",
    )


def without_tokens(finished: Run, place: Path) -> Run:
    run = finished.copy(place)
    for path in (run.out / "state" / "tokens").iterdir():
        path.unlink()
    return run


def test_the_pool_is_gone(finished: Run, tmp_path: Path, test_set: Path) -> None:
    run = without_tokens(finished, tmp_path / "out")
    config = run.out / "config.yaml"
    gone = tmp_path / "gone"
    config.write_text(config.read_text().replace(str(run.inputs / "pool"), str(gone)))
    assert refused(run.out, "--test", test_set) == says(
        f"The pool path does not exist: {gone}.",
        "Say with --pool where the pool of the run lies now.",
    )
    given = ["--test", test_set, "--pool", run.inputs / "pool", "--multiples", "1", "--seeds", "1"]
    assert curate("evaluate", run.out, *FLAGS, *given).exit_code == 0


def test_the_pool_is_another(finished: Run, stranger: Run, tmp_path: Path, test_set: Path) -> None:
    run = without_tokens(finished, tmp_path / "out")
    other = stranger.inputs / "pool"
    assert refused(run.out, "--test", test_set, "--pool", other) == says(
        f"The pool in {other} is not the one that the run in {run.out} curated.",
        "Say with --pool where the pool of the run lies now.",
    )


def not_what_was_written(path: Path) -> str:
    return says(
        f"{path} is not what the run wrote: it is gone or was changed.",
        "See what else is damaged with curate verify; curate run with a new --out makes the output "
        "again.",
    )


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def reverse_rows(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.take(list(range(table.num_rows))[::-1]), path)


@pytest.mark.parametrize("damage", [Path.unlink, truncate, reverse_rows])
@pytest.mark.parametrize("index", [0, -1])
def test_a_dataset_that_is_not_what_the_run_wrote(
    finished: Run, tmp_path: Path, test_set: Path, damage: Callable[[Path], None], index: int
) -> None:
    """A result is filed under the name of the whole dataset, so it must not be of a part of it."""
    run = finished.copy(tmp_path / "out")
    part = run.parts()[index]
    whole = part.read_bytes()
    damage(part)
    for _ in range(2):
        result = curate("evaluate", run.out, *FLAGS, "--test", test_set)
        assert result.exit_code == 2, (result.exception, result.stderr)
        assert result.stderr.endswith(not_what_was_written(part))
    part.write_bytes(whole)
    assert curate("evaluate", run.out, *FLAGS, "--test", test_set).exit_code == 0
    assert verify(run.out, full=True).holds


def test_a_log_that_is_not_what_the_run_wrote(
    finished: Run, tmp_path: Path, test_set: Path
) -> None:
    """An evaluation records the log's hash anew, and would hide that it was changed."""
    run = finished.copy(tmp_path / "out")
    with duckdb.connect(str(run.log)) as connection:
        connection.execute("UPDATE document SET source = 'x'")
    assert refused(run.out, "--test", test_set) == not_what_was_written(run.log)
    assert not verify(run.out).holds


def test_tokens_that_were_cut_short_are_made_again(
    finished: Run, tmp_path: Path, test_set: Path
) -> None:
    run = finished.copy(tmp_path / "out")
    truncate(sorted((run.out / "state" / "tokens").glob("*.arrow"))[0])
    assert curate("evaluate", run.out, *FLAGS, "--test", test_set).exit_code == 0
    assert list((run.out / "evaluation" / "tokens").iterdir())


def test_no_such_device(finished: Run, test_set: Path) -> None:
    assert refused(finished.out, "--test", test_set, "--device", "tpu") == says(
        "compute.device must be auto, cpu, cuda or cuda:N, but is tpu.",
        "Set --device to one of them.",
    )


def test_no_such_model(finished: Run, test_set: Path, tmp_path: Path) -> None:
    said = refused(finished.out, "--test", test_set, "--model", tmp_path)
    assert said.startswith(f"Error: There is no model {tmp_path}: ")
    assert said.endswith("To fix: Set --model to one of the presets, a model folder or a Hub id.\n")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"facts": {}, "measures": []}', '{"measures": [1]}', "\udcff"]
)
def test_a_damaged_result(finished: Run, tmp_path: Path, test_set: Path, content: str) -> None:
    run = finished.copy(tmp_path / "out")
    done = curate("evaluate", run.out, *FLAGS, "--test", test_set)
    assert done.exit_code == 0, done.stderr
    damaged = sorted((run.out / "evaluation" / "results").iterdir())[0]
    damaged.write_bytes(content.encode(errors="surrogateescape"))
    more = ["--test", test_set, "--seeds", "3"]
    result = curate("evaluate", run.out, *FLAGS, *more)
    assert result.exit_code == 2
    assert result.stderr.endswith(
        says(
            f"The result {damaged} is damaged.",
            "Remove the file: the model is then trained again.",
        )
    )
    damaged.unlink()
    assert curate("evaluate", run.out, *FLAGS, *more).exit_code == 0
