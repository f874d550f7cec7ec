"""`curate compare` as people meet it: the verb's output, mistakes, and logs of strangers."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import duckdb
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from compare_sample import FIRST, RUN, SECOND, Sample, rewrite

from curate.cli import main
from curate.errors import InvalidInput
from curate.log.attach import attach
from curate.log.compare import compare
from curate.log.compare_text import render_comparison
from curate.log.query import LOG_NAME

REMEDY = "Give the output folder of a finished curate run."


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs that no test changes; they are where the example of the verb has them."""
    folder = tmp_path_factory.mktemp("compare")
    return FIRST.build(folder / "out"), SECOND.build(folder / "out-random")


# The command line.


def ask(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


TABLE = """\
Run  Folder      Method  Granularity  Keep  Seed  Documents  Tokens  Of the pool
A    out         blade   document     0.35     7          3      70       35.0 %
B    out-random  random  document      0.6     8          2     120       60.0 %

Runs     Scored by both  Correlation  Shared tokens  Overlap  At random  Jaccard  At random
A and B               5       -0.667             20   28.6 %     60.0 %   11.8 %     28.4 %
Correlation: Spearman's, of the scores of documents that both scored; - where a run has but one.
Overlap: shared tokens / kept tokens of the smaller selection. Jaccard: shared / kept by either.
At random: the same for two independent random selections of these sizes.

Share of tokens by source, in the pool and of what was kept:
source    Pool       A       B
NULL    50.0 %   0.0 %  83.3 %
math    30.0 %  85.7 %  16.7 %
web     20.0 %  14.3 %   0.0 %

Kept by A, not by B: 2 documents, first those whose scores differ most in percentile rank.
Document  source  Tokens  Rank in A  Rank in B  Weight in A  Reason in A  Reason in B
0:0       web         10     90.0 %     10.0 %          1.5  selected     never_selected
0:4       math        40     30.0 %     40.0 %          1.5  selected     never_selected

Kept by B, not by A: 1 document, first those whose scores differ most in percentile rank.
Document  source  Tokens  Rank in B  Rank in A  Weight in B  Reason in B  Reason in A
0:5       NULL       100     90.0 %     10.0 %          1.5  selected     never_selected
"""


def test_the_table(pair, monkeypatch):
    monkeypatch.chdir(pair[0].parent)
    done = ask("out", "out-random")
    assert (done.exit_code, done.output) == (0, TABLE + "\n")


def test_json(pair):
    done = ask(*pair, "--by", "source", "--top", 1, "--format", "json")
    assert done.exit_code == 0
    assert json.loads(done.stdout, parse_constant=pytest.fail) == compare(pair, by="source", top=1)


def test_figures_that_json_does_not_know_are_null(pair, tmp_path):
    odd = rewrite(FIRST.build(tmp_path / "odd"), "UPDATE run SET keep_ratio = 'NaN'::DOUBLE")
    done = ask(odd, pair[1], "--format", "json")
    assert json.loads(done.stdout, parse_constant=pytest.fail)["runs"][0]["keep"] is None
    assert ask(odd, pair[1]).exit_code == 0


def test_errors_on_the_command_line(pair):
    done = ask(pair[0])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        "Error: Expected two or more runs to compare but got 1.\n"
        "To fix: Give the output folders of finished runs over the same pool.\n"
    )
    assert ask(*pair, "--top", -1).exit_code == 2


def test_the_examples_of_the_verb_work(pair, monkeypatch):
    monkeypatch.chdir(pair[0].parent)
    command: click.Command = main.commands["compare"]
    lines = [line.strip() for line in str(command.epilog).splitlines() if "curate compare" in line]
    assert lines
    for line in lines:
        done = ask(*shlex.split(line)[2:])
        assert done.exit_code == 0, done.output


def test_many_values_are_cut_in_the_table_and_counted(tmp_path):
    count = 50
    sample = Sample(
        kept=[True] * count,
        rounds=[],
        tokens=[2] * count,
        metadata={"number": pa.array([str(n) for n in range(count)])},
    )
    out = sample.build(tmp_path / "a")
    found = compare([out, out], by="number")
    assert len(found["shares"]["rows"]) == found["shares"]["values"] == count
    assert "and 30 more\n" in render_comparison(found)


# Mistakes.


def refusal(ask: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(InvalidInput) as caught:
        ask()
    assert caught.value.exit_code == 2
    return caught.value.problem, caught.value.remedy


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_runs(pair, count):
    assert refusal(lambda: compare(pair[:count])) == (
        f"Expected two or more runs to compare but got {count}.",
        "Give the output folders of finished runs over the same pool.",
    )


def test_a_negative_number_of_documents(pair):
    assert refusal(lambda: compare(pair, top=-1)) == (
        "The number of documents to show is -1.",
        "Set top to 0 or more.",
    )


def test_a_run_without_a_log(pair, tmp_path):
    problem = f"There is no selection log in {tmp_path}."
    assert refusal(lambda: compare([pair[0], tmp_path])) == (problem, REMEDY)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_log(pair, tmp_path):
    (tmp_path / LOG_NAME).write_bytes(b"not a database" * 1000)
    problem, remedy = refusal(lambda: compare([pair[0], tmp_path]))
    assert problem.startswith(f"The selection log in {tmp_path} cannot be opened: ")
    assert remedy == (
        "Close other connections to it; if it is damaged, restore it, or run curate again with "
        "another --out."
    )


@pytest.mark.parametrize(
    ("fingerprints", "shard"),
    [(("f0", "other", "f2"), 1), (("f0", "f1"), 2), (("f0", "f1", "f2", "f3"), 3)],
)
def test_runs_over_different_pools(tmp_path, fingerprints, shard):
    def build(name: str, found: Sequence[str]) -> Path:
        sample = Sample(kept=FIRST.kept, rounds=FIRST.rounds, fingerprints=found)
        return sample.build(tmp_path / name)

    a, b = build("a", ("f0", "f1", "f2")), build("b", fingerprints)
    assert refusal(lambda: compare([a, a, b])) == (
        f"The runs in {a} and {b} are over different pools: "
        f"shard {shard} (pool/{shard}.parquet) is the first that differs.",
        "Compare runs over the same files in the same order.",
    )


def test_an_unknown_column(pair):
    assert refusal(lambda: compare(pair, by="kept")) == (
        "The logs have no metadata column kept.",
        "Choose one of these: source.",
    )


def test_no_columns_at_all(tmp_path):
    out = Sample(kept=FIRST.kept, rounds=FIRST.rounds, metadata={}).build(tmp_path / "a")
    assert refusal(lambda: compare([out, out], by="source")) == (
        "The logs have no metadata column source.",
        "Leave --by out, for they have none.",
    )


# Logs of strangers.


@pytest.mark.parametrize("name", ["run", "shard", "decision", "document"])
def test_only_base_tables_are_read(pair, tmp_path, name):
    hostile = rewrite(
        FIRST.build(tmp_path / "hostile"),
        f"ALTER TABLE {name} RENAME TO moved",
        f"CREATE VIEW {name} AS SELECT * FROM moved, read_text('/etc/passwd')",
    )
    problem = f"The selection log in {hostile} has no table {name}."
    assert refusal(lambda: compare([pair[0], hostile])) == (problem, REMEDY)


def test_views_and_macros_of_a_log_are_not_used(pair, tmp_path):
    hostile = rewrite(
        FIRST.build(tmp_path / "hostile"),
        "CREATE VIEW keep_rate_by_source AS SELECT error('view') AS value",
        "CREATE MACRO avg(x) AS error('macro')",
        "CREATE MACRO isfinite(x) AS error('macro')",
    )
    assert compare([hostile, pair[1]])["shares"]["column"] == "source"


def test_a_table_that_cannot_be_read_is_said_in_one_sentence(pair, tmp_path):
    hostile = rewrite(
        FIRST.build(tmp_path / "hostile"),
        "ALTER TABLE decision ALTER score TYPE VARCHAR USING 'a' || chr(27) || chr(10) || 'b'",
    )
    problem, remedy = refusal(lambda: compare([hostile, pair[1]]))
    assert problem.startswith("The selection logs cannot be compared: ")
    assert problem.isprintable()
    assert remedy == (
        "Give the output folders of finished curate runs, and TMPDIR room for temporary files."
    )


ATTACKS = [
    "FROM read_text('/etc/passwd')",
    "FROM '{folder}/in.csv'",
    "COPY log_0.main.document TO '{folder}/out.csv'",
    "ATTACH '{folder}/new.duckdb'",
    "ATTACH '{folder}/out/selection_log.duckdb' AS again (READ_WRITE)",
    "DELETE FROM log_0.main.document",
    "CREATE VIEW log_0.main.v AS SELECT 1",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "SET temp_directory = '{folder}/t'",
    "FROM pair",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_connection_reaches_the_logs_and_nothing_else(pair, tmp_path, attack):
    (tmp_path / "in.csv").write_text("a\n1\n")
    shutil.copytree(pair[0], tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    with attach([tmp_path / "out", pair[1]]) as (connection, _):
        assert connection.execute("SELECT count(*) FROM log_0.main.document").fetchall() == [(6,)]
        with pytest.raises(duckdb.Error):
            connection.execute(attack.format(folder=tmp_path)).fetchall()
    assert sorted(tmp_path.rglob("*")) == before


def test_spilling_leaves_nothing_behind(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("curate.log.attach.QUERY_MEMORY", "50MB")
    with attach(pair) as (connection, _):
        query = "CREATE TEMP TABLE spilled AS SELECT uuid() AS value FROM range(4000000)"
        connection.execute(query)
        assert [*tmp_path.glob("curate-log-*/*")] != []
        assert connection.execute("SELECT count(value) FROM spilled").fetchall() == [(4000000,)]
    assert list(tmp_path.iterdir()) == []


def test_hostile_text_cannot_move_the_cursor(tmp_path):
    columns = {"a\x1b[2J": pa.array(["x\n\x1b[1A", "y"] * 3)}
    run = RUN | {"method": "b\x1bc", "granularity": "d\n"}
    kept = [False, True] * 3
    for name, sample in (("a", FIRST.kept), ("b", kept)):
        Sample(kept=sample, rounds=FIRST.rounds, metadata=columns, run=run).build(tmp_path / name)
    text = render_comparison(compare([tmp_path / "a", tmp_path / "b"]))
    assert "\\x1b" in text
    assert all(line.isprintable() for line in text.split("\n"))
