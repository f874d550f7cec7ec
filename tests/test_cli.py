"""The command line: help, examples that work as printed, and what each verb prints."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import shutil
from importlib.metadata import version
from pathlib import Path

import click
import datasets
import pyarrow.parquet as pq
import pytest
from run_helpers import (
    PROGRAM,
    TINY_FLAGS,
    Run,
    curate,
    environment,
    listing,
    run_arguments,
    shared_run,
    snapshot,
    spawn,
    working_folder,
    write_plain_pool,
)

from curate.cli import main

VERBS = sorted(main.commands)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return shared_run(tmp_path_factory)


# Help.


def test_the_verbs() -> None:
    assert VERBS == ["compare", "evaluate", "export", "log", "run", "verify"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_and_option_has_help(verb: str) -> None:
    command = main.commands[verb]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
    for flag in ("--help", "-h"):
        result = curate(verb, flag)
        assert result.exit_code == 0
        assert "Example:" in result.output
        for parameter in command.params:
            assert max(parameter.opts, key=len).lower() in result.output.lower()


def test_help_and_version() -> None:
    for flag in ("--help", "-h"):
        result = curate(flag)
        assert result.exit_code == 0
        assert all(re.search(rf"^  {verb} ", result.output, re.MULTILINE) for verb in VERBS)
    result = curate("--version")
    assert (result.exit_code, result.output) == (0, f"curate, version {version('curate')}\n")


@pytest.mark.parametrize("arguments", [["nothing"], ["run", "--no-such-flag"], ["log"]])
def test_misuse_is_bad_input(arguments: list[str]) -> None:
    result = curate(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


def examples() -> list[str]:
    """The example lines of all verbs, as `--help` prints them."""
    lines = []
    for verb in VERBS:
        _, _, text = curate(verb, "--help").output.partition("Example:\n")
        lines += [line.strip() for line in text.splitlines() if line.strip()]
    return lines


def test_there_are_examples_of_every_verb() -> None:
    assert {line.split()[1] for line in examples()} == set(VERBS)


@pytest.fixture(scope="session")
def example_place(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the examples suppose it: shards/, target.parquet, a recipe and a run in out."""
    place = tmp_path_factory.mktemp("examples")
    write_plain_pool(place)
    (place / "pool").rename(place / "shards")
    corpus = place / "demo" / "corpus"
    write_plain_pool(corpus, rows=20)
    for path in (corpus / "pool").iterdir():
        table = pq.read_table(path)
        for name in ("source", "path"):
            table = table.append_column(name, [[f"{name}{i % 2}" for i in range(20)]])
        pq.write_table(table, path)
    recipes = Path(__file__).parents[1] / "pipelines"
    (place / "pipelines").mkdir()
    for recipe in recipes.iterdir():
        (place / "pipelines" / recipe.name).write_text(recipe.read_text())
    return place


@pytest.mark.parametrize("line", examples())
def test_an_example_works(line: str, run: Run, example_place: Path) -> None:
    if line.startswith("curate run"):
        with working_folder(example_place):
            result = curate(*shlex.split(line)[1:], *TINY_FLAGS, "--set", "blade.reference_steps=1")
        assert result.exit_code == 0, result.stderr
        return
    place = example_place / "finished"
    if not place.exists():
        place.mkdir()
        run.copy(place / "out")
        run.copy(place / "out-random")
        shutil.copy(run.inputs / "target.parquet", place / "test.parquet")
    command, _, file = line.partition(" > ")
    row = run.sql('SELECT shard_id, "row" FROM document WHERE kept LIMIT 1')[0]
    command = re.sub(r"--why \S+", f"--why {row[0]}:{row[1]}", command)
    few = ["--tokens", "256", "--batch-tokens", "128", "--window", "32"]
    more = few if command.startswith("curate evaluate") else []
    with working_folder(place):
        result = curate(*shlex.split(command)[1:], *more)
    assert result.exit_code == 0, result.stderr
    assert result.stdout_bytes
    if file:
        rows = pq.read_table(io.BytesIO(result.stdout_bytes))
        assert rows.num_rows == run.sql("SELECT count(*) FROM dropped")[0][0]


# curate run.


def test_a_run_prints_what_it_did(tmp_path: Path) -> None:
    inputs = write_plain_pool(tmp_path)
    result = curate(*run_arguments(inputs, tmp_path / "out", blade__warmup_tokens=0, keep=0.5))
    assert result.exit_code == 0, result.stderr
    assert "\r" not in result.stderr + result.stdout
    first, second, third, doubt = result.stderr.splitlines()
    assert re.fullmatch(
        r"pool [\d,]+ tokens, keep 0\.5 = [\d,]+, method blade, granularity document, seed 0",
        first,
    )
    assert second.startswith("model nano, ")
    assert third.startswith("warm-up 0 tokens; 1 pass over 0.33 of the pool x ")
    assert re.fullmatch(
        r"The target does not stand out from the pool: 4 documents of it, held out, scored "
        r"\d+\.\d\d spreads (above|below) the pool's mean, which may be chance\. Noise will "
        r"decide at least as much as the scores do; a larger target, or one less like the pool, "
        r"would give them a meaning\.",
        doubt,
    )
    places = result.stdout.partition(f"Written to {tmp_path / 'out'}:\n")[2].splitlines()
    written = [line.split()[0] for line in places]
    assert len(written) == 4
    assert all(Path(one).exists() for one in written)


def test_flags_reach_the_settings(tmp_path: Path) -> None:
    inputs = write_plain_pool(tmp_path)
    (tmp_path / "c.yaml").write_text(
        f"pool: {inputs / 'pool'}\ntarget: nowhere\nout: nowhere\nkeep: 0.9\nseed: 3\n"
        "model:\n  name: small\n"
    )
    flags = [
        "--target", str(inputs / "target.parquet"), "--out", str(tmp_path / "out"),
        "--keep", "0.5", "--method", "random", "--granularity", "document", "--model", "tiny",
        "--seed", "7", "--device", "cpu", "--text-column", "text", "--set", "keep=0.25",
    ]  # fmt: skip
    result = curate("run", str(tmp_path / "c.yaml"), *flags)
    assert result.exit_code == 0, result.stderr
    tree = json.loads((tmp_path / "out" / "manifest.json").read_text())["config"]
    assert (tree["keep"], tree["seed"], tree["method"]) == (0.25, 7, "random")
    assert (tree["model"]["name"], tree["compute"]["device"]) == ("tiny", "cpu")


# curate log.


def test_log_summary(run: Run) -> None:
    result = curate("log", run.out)
    assert result.exit_code == 0
    [(run_id, kept, tokens)] = run.sql("SELECT run_id, kept_documents, kept_tokens FROM run")
    assert result.stdout.startswith(f"Run {run_id}: blade, documents\n")
    assert f"Kept    {kept:,} documents, {tokens:,} tokens" in result.stdout


def test_log_sql_in_every_format(run: Run) -> None:
    query = "SELECT document_id, kept, weight, source FROM document ORDER BY document_id LIMIT 5"
    expected = run.sql(query)
    asked = {
        form: curate("log", run.out, "--sql", query, "--format", form)
        for form in ("table", "csv", "json", "parquet")
    }
    assert all(result.exit_code == 0 and not result.stderr for result in asked.values())
    table = asked["table"].stdout.splitlines()
    assert table[0].split() == ["document_id", "kept", "weight", "source"]
    assert table[-1] == "(5 rows)"
    rows = list(csv.reader(io.StringIO(asked["csv"].stdout)))
    assert rows[0] == ["document_id", "kept", "weight", "source"]
    assert [(int(row[0]), row[3]) for row in rows[1:]] == [(row[0], row[3]) for row in expected]
    objects = json.loads(asked["json"].stdout)
    assert [(o["document_id"], o["kept"], o["source"]) for o in objects] == [
        (row[0], row[1], row[3]) for row in expected
    ]
    parquet = pq.read_table(io.BytesIO(asked["parquet"].stdout_bytes))
    assert [tuple(row.values()) for row in parquet.to_pylist()] == expected


def test_log_prints_a_table_by_default(run: Run) -> None:
    query = "SELECT 1 AS one"
    assert curate("log", run.out, "--sql", query).stdout == "one\n---\n  1\n(1 row)\n"


def test_log_summary_and_why_as_json(run: Run) -> None:
    result = curate("log", run.out, "--format", "json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["run"]["run_id"] == run.sql("SELECT run_id FROM run")[0][0]
    assert len(found["rounds"]) == run.sql("SELECT count(*) FROM round")[0][0]
    rows = json.loads(curate("log", run.out, "--why", "0:1", "--format", "json").stdout)
    assert {row["document_id"] for row in rows} == {1}
    assert len(rows) == len(run.sql("FROM why(1)"))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            ("--why", "0:1", "--sql", "FROM kept"),
            "Error: --sql and --why are two questions.\nTo fix: Ask one at a time.\n",
        ),
        (
            ("--format", "csv"),
            "Error: --format csv is for the rows of a query, but --sql is not given.\n"
            "To fix: Give --sql, or --format json.\n",
        ),
        (
            ("--why", "0:1", "--format", "parquet"),
            "Error: --format parquet is for the rows of a query, but --sql is not given.\n"
            "To fix: Give --sql, or --format json.\n",
        ),
    ],
)
def test_log_flags_that_would_do_nothing(run: Run, asked: tuple[str, ...], said: str) -> None:
    result = curate("log", run.out, *asked)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", said)


def test_log_why_by_id_and_by_place(run: Run) -> None:
    [(document, row)] = run.sql(
        'SELECT document_id, "row" FROM document WHERE kept AND shard_id > 0 LIMIT 1'
    )
    by_id = curate("log", run.out, "--why", str(document))
    by_place = curate("log", run.out, "--why", f"{document >> 40}:{row}")
    assert by_id.exit_code == by_place.exit_code == 0
    assert by_id.stdout == by_place.stdout
    assert by_id.stdout.startswith(f"Document {document} (shard {document >> 40}, row {row}): ")


@pytest.mark.parametrize("document", ["9:9", "0:20", "-1", "99999999", "x", "", "1:2:3", "0:-1"])
def test_log_why_about_no_document(run: Run, document: str) -> None:
    result = curate("log", run.out, "--why", document)
    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: There is no document {document} in the log.\n"
        "To fix: Give a document_id from the document table, or SHARD:ROW.\n"
    )


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        ("DELETE FROM document", "The selection log is read-only and DELETE is not a query."),
        ("SELECT 1; SELECT 2", "Expected one SQL statement but the text holds 2."),
    ],
)
def test_log_refuses_what_is_no_query(run: Run, sql: str, problem: str) -> None:
    result = curate("log", run.out, "--sql", sql)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"Error: {problem}\nTo fix: Run DESCRIBE or SHOW TABLES to see what the log holds.\n"
    )


def test_log_and_pivots(run: Run) -> None:
    """Without values DuckDB makes a type of them first, which a read-only log does not take."""
    result = curate("log", run.out, "--sql", "PIVOT document ON kept USING sum(tokens)")
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: A PIVOT without a list of values is not a single query.\n"
        "To fix: Name the values: PIVOT ... ON column IN (value, ...).\n"
    )
    pivot = "PIVOT document ON kept IN (true, false) USING sum(tokens) GROUP BY reason"
    result = curate("log", run.out, "--sql", pivot, "--format", "csv")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "reason,true,false")


def test_log_of_a_query_that_fails(run: Run) -> None:
    result = curate("log", run.out, "--sql", "FROM nowhere")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: The query failed: ")


def test_log_writes_nothing(run: Run, tmp_path: Path) -> None:
    before = snapshot(run.out)
    with working_folder(tmp_path):
        curate("log", run.out, "--sql", "FROM kept")
        curate("log", run.out)
    assert snapshot(run.out) == before
    assert listing(tmp_path) == []


# curate export.


@pytest.mark.parametrize("materialize", [False, True], ids=["weights", "materialize"])
@pytest.mark.parametrize("form", ["hf", "parquet", "jsonl"])
def test_export(run: Run, tmp_path: Path, form: str, materialize: bool) -> None:
    dest = tmp_path / "new" / "dest"
    more = ["--materialize", "--seed", "5"] if materialize else []
    before = snapshot(run.out)
    result = curate("export", run.out, "--to", form, "--dest", dest, *more)
    assert result.exit_code == 0, result.stderr
    ids = sorted(exported_ids(dest, form))
    assert result.stdout == f"Wrote {len(ids):,} rows to {dest}.\n"
    kept = [one for (one,) in run.sql("SELECT id FROM document WHERE kept ORDER BY id")]
    assert (sorted(set(ids)) if materialize else ids) == kept
    assert snapshot(run.out) == before
    assert listing(tmp_path / "new")[0] == "dest"


def exported_ids(dest: Path, form: str) -> list[int]:
    if form == "hf":
        return list(datasets.load_from_disk(str(dest))["id"])
    if form == "parquet":
        return [i for path in dest.iterdir() for i in pq.read_table(path)["id"].to_pylist()]
    lines = [line for path in dest.iterdir() for line in path.read_text().splitlines()]
    return [json.loads(line)["id"] for line in lines]


def test_export_into_a_folder_with_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    result = curate("export", run.out, "--to", "jsonl", "--dest", tmp_path)
    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: The destination {tmp_path} is not empty.\nTo fix: Give a new folder with --dest.\n"
    )
    assert listing(tmp_path) == ["mine"]


# Processes.


def test_log_through_a_pipe_that_closes(run: Run, tmp_path: Path) -> None:
    """`curate log ... | head -1` ends without a traceback."""
    import subprocess
    import sys

    query = "SELECT i FROM range(200000) AS r(i)"
    command = shlex.join(
        [sys.executable, "-c", PROGRAM,
         "log", str(run.out), "--format", "csv", "--sql", query]
    )  # fmt: skip
    done = subprocess.run(
        ["/bin/sh", "-c", f"{command} | head -1"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "i\n"
    assert "Traceback" not in done.stderr


def test_the_verbs_in_a_process_of_their_own(run: Run, tmp_path: Path) -> None:
    done = spawn("log", str(run.out), "--sql", "SELECT count(*) AS n FROM kept", cwd=tmp_path)
    [(kept,)] = run.sql("SELECT count(*) FROM kept")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["n", "--", f"{kept}", "(1", "row)"]
