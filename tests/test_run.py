"""Whole runs at a tiny size: the budget, the outputs, and that equal seeds are equal."""

from __future__ import annotations

import json
import math
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import datasets
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from run_helpers import (
    COMPARABLE,
    OURS,
    ROWS,
    SHARDS,
    Run,
    assert_same_outcome,
    curate,
    data_digests,
    digest,
    listing,
    rich_table,
    run_arguments,
    run_tiny,
    shard_of,
    shared_run,
    snapshot,
    spawn,
    write_plain_pool,
    write_pool,
)

from curate.config import load_config
from curate.records import OUTPUT_COLUMNS, split_document_id
from curate.select.schedule import visit_coefficients

# The budget and the weights.


def test_the_budget_is_met_within_half_of_the_crossing_document(finished: Run) -> None:
    """The kept set is a prefix of the ranking, cut at the document nearest to the budget."""
    table = pq.read_table(finished.out / "state" / "selection.parquet").to_pylist()
    tokens = dict(finished.sql("SELECT document_id, tokens FROM document"))
    ranked = merit_of(finished)
    scores = {row["document_id"]: row["score"] for row in table}
    order = sorted(ranked, key=lambda one: (-ranked[one], -scores[one]))
    kept = [row["document_id"] for row in table if row["kept"]]
    assert set(order[: len(kept)]) == set(kept)
    budget = 0.2 * sum(tokens.values())
    crossing = max(tokens[order[len(kept) - 1]], tokens[order[len(kept)]])
    assert abs(sum(tokens[one] for one in kept) - budget) <= crossing / 2


def merit_of(run: Run) -> dict[int, float]:
    """The Frank-Wolfe average of each visited document, from its decisions in the log."""
    config = load_config(run.out / "config.yaml")
    rows = run.sql("SELECT document_id, round, kept FROM decision ORDER BY document_id, round")
    decisions: dict[int, list[bool]] = defaultdict(list)
    for document, _, kept in rows:
        decisions[document].append(kept)
    merits = {}
    for document, verdicts in decisions.items():
        coefficients = visit_coefficients(config.blade.average, len(verdicts))
        merits[document] = sum(c for c, kept in zip(coefficients, verdicts, strict=True) if kept)
    return merits


def test_weights_average_one_over_kept_tokens(finished: Run) -> None:
    [(mean,)] = finished.sql("SELECT sum(weight * tokens) / sum(tokens) FROM document WHERE kept")
    assert mean == pytest.approx(1, abs=1e-5)
    assert finished.sql("SELECT count(*) FROM document WHERE NOT kept AND weight <> 0") == [(0,)]


def test_weights_are_the_averages_of_the_decisions(finished: Run) -> None:
    rows = finished.sql("SELECT document_id, tokens, weight, reason FROM document WHERE kept")
    merits = merit_of(finished)
    least = min(merits[one] for one, *_ in rows if merits[one] > 0)
    wanted = {one: merits[one] or least for one, *_ in rows}
    scale = sum(tokens for _, tokens, *_ in rows) / sum(
        tokens * wanted[one] for one, tokens, *_ in rows
    )
    for one, _, weight, reason in rows:
        assert weight == pytest.approx(wanted[one] * scale, rel=1e-5)
        assert reason == ("selected" if merits[one] > 0 else "filled")


# The rows.


def test_every_pool_row_is_in_document_once(finished: Run) -> None:
    rows = finished.sql('SELECT document_id, shard_id, "row" FROM document ORDER BY document_id')
    assert [row[1:] for row in rows] == [(s, r) for s in range(SHARDS) for r in range(ROWS)]
    assert all(split_document_id(row[0]) == row[1:] for row in rows)


def test_documents_without_text_are_empty(finished: Run) -> None:
    rows = finished.sql(
        "SELECT DISTINCT \"row\", tokens, kept FROM document WHERE reason = 'empty'"
    )
    assert sorted(rows) == [(3, 0, False), (7, 0, False)]
    assert finished.sql("SELECT count(*) FROM document WHERE tokens = 0") == [(2 * SHARDS,)]


def test_bytes_and_metadata_are_those_of_the_pool(finished: Run) -> None:
    pool = pa.concat_tables(
        [rich_table(shard).select(["id", "text", "kept"]) for shard in range(3)]
    )
    rows = finished.sql("SELECT bytes, id, pool_kept FROM document ORDER BY document_id")
    expected = [
        (len((row["text"] or "").encode()), row["id"], row["kept"]) for row in pool.to_pylist()
    ]
    assert rows == expected


def test_a_document_of_many_windows_is_scored_whole(blade: Run) -> None:
    [(tokens,)] = blade.sql('SELECT tokens FROM document WHERE shard_id = 1 AND "row" = 11')
    assert tokens > 10 * 32
    rows = blade.sql(
        'SELECT tokens, proxy_loss, reference_loss FROM decision WHERE shard_id = 1 AND "row" = 11'
    )
    assert {row[0] for row in rows} == {tokens}
    assert all(math.isfinite(loss) for row in rows for loss in row[1:])


def test_kept_rows_are_the_pool_rows_unchanged(finished: Run) -> None:
    kept = finished.sql('SELECT shard_id, list("row" ORDER BY "row") FROM document '
                        "WHERE kept GROUP BY shard_id ORDER BY shard_id")  # fmt: skip
    assert [shard for shard, _ in kept] == [shard_of(part) for part in finished.parts()]
    for (shard, rows), part in zip(kept, finished.parts(), strict=True):
        source = pq.read_table(finished.inputs / "pool" / f"shard-{shard}.parquet")
        table = pq.read_table(part)
        assert table.column_names == [*source.column_names, *OURS]
        assert table.drop_columns(OURS).schema.equals(source.schema)
        taken = source.take(rows)
        for name in source.column_names:
            mine, theirs = (t.column(name).combine_chunks() for t in (table, taken))
            assert repr(mine.to_pylist()) == repr(theirs.to_pylist()), name


def test_kept_rows_join_to_the_pool_in_sql(finished: Run) -> None:
    same = " AND ".join(f"p.{name} IS NOT DISTINCT FROM d.{name}" for name in COMPARABLE)
    with duckdb.connect() as database:
        database.execute(f"ATTACH '{finished.log}' AS log (READ_ONLY)")
        counts = database.execute(
            f"""
            WITH kept AS (
                SELECT s.uri, o.shard_id, o."row", o.weight,
                       row_number() OVER (PARTITION BY o.shard_id ORDER BY o."row") - 1 AS place
                FROM log.document o JOIN log.shard s USING (shard_id) WHERE o.kept
            ),
            part AS (
                SELECT *, regexp_extract(filename, 'part-([0-9]+)', 1)::INT AS part
                FROM read_parquet($parts, file_row_number = true, filename = true)
            ),
            pool AS (SELECT * FROM read_parquet($pool, file_row_number = true, filename = true))
            SELECT count(*), count(*) FILTER ({same}),
                   count(*) FILTER (d.curate_weight = kept.weight)
            FROM kept
            JOIN pool p ON p.filename = kept.uri AND p.file_row_number = kept."row"
            JOIN part d ON d.part = kept.shard_id AND d.file_row_number = kept.place
            """,
            {
                "parts": [str(part) for part in finished.parts()],
                "pool": str(finished.inputs / "pool" / "*.parquet"),
            },
        ).fetchone()
        rows = database.execute("SELECT count(*) FROM log.document WHERE kept").fetchone()
    assert rows is not None
    assert counts == (rows[0],) * 3


def test_output_columns_are_the_selection(finished: Run) -> None:
    selection = pq.read_table(finished.out / "state" / "selection.parquet").to_pylist()
    kept = [row for row in selection if row["kept"]]
    rows = [
        row for part in finished.parts() for row in pq.read_table(part, columns=OURS).to_pylist()
    ]
    names = ("weight", "score", "excess_loss", "round")
    assert rows == [{f"curate_{name}": row[name] for name in names} for row in kept]
    for part in finished.parts():
        fields = [pq.read_schema(part).field(name) for name in OURS]
        assert [field.type for field in fields] == [field.type for field in OUTPUT_COLUMNS]


def test_methods_without_models_have_no_losses(tmp_path_factory: pytest.TempPathFactory) -> None:
    run = shared_run(tmp_path_factory, method="random")
    assert run.sql(
        "SELECT count(proxy_loss), count(reference_loss), count(score) FROM decision"
    ) == [(0, 0, SHARDS * (ROWS - 2))]
    assert run.sql("SELECT count(*) FROM training") == [(0,)]


# The other files.


def test_load_dataset_agrees_with_the_parts(finished: Run, tmp_path: Path) -> None:
    loaded = datasets.load_dataset(
        str(finished.out), split="train", cache_dir=str(tmp_path), download_mode="force_redownload"
    )
    rows = [row for part in finished.parts() for row in pq.read_table(part).to_pylist()]
    assert repr([loaded[i] for i in range(len(loaded))]) == repr(rows)


def test_config_has_every_value_and_loads_back(finished: Run) -> None:
    path = finished.out / "config.yaml"
    config = load_config(path)
    derived = (
        config.model.window,
        config.model.window_overlap,
        config.model.vocabulary_size,
        config.train.batch_tokens,
        config.train.learning_rate,
        config.blade.warmup_tokens,
        config.blade.sync_every,
        config.blade.reference_steps,
        config.blade.reference_learning_rate,
        config.blade.passes,
    )
    assert None not in derived
    assert config.out == str(finished.out)
    logged = json.loads(finished.sql("SELECT config FROM run")[0][0])
    tree = yaml.safe_load(path.read_text())
    tree.pop("out")
    assert logged == tree


def test_the_runs_own_config_runs_it_again(blade: Run, tmp_path: Path) -> None:
    again = tmp_path / "again"
    result = curate("run", str(blade.out / "config.yaml"), "--out", str(again))
    assert result.exit_code == 0, result.stderr
    assert data_digests(Run(blade.inputs, again)) == data_digests(blade)


def test_manifest_names_every_output_with_its_hash(finished: Run) -> None:
    manifest = json.loads((finished.out / "manifest.json").read_text())
    files = {
        name: digest(finished.out / name)
        for name in listing(finished.out)
        if (finished.out / name).is_file() and not name.startswith("state/")
    }
    del files["manifest.json"]
    assert manifest["files"] == files
    assert manifest["format_version"] == 1
    assert list(manifest["stages"])[-1] == "complete"


def test_nothing_temporary_is_left(finished: Run) -> None:
    for name in listing(finished.out):
        base = name.rpartition("/")[2]
        assert not base.startswith("."), name
        assert not base.endswith((".tmp", ".wal", ".spill", ".scored")), name
    assert len(list((finished.out / "state" / "checkpoints").iterdir())) <= 1


def test_nothing_is_written_elsewhere(tmp_path: Path) -> None:
    """Not in the working folder, not in HOME, not in the folder for temporary files."""
    inputs = write_plain_pool(tmp_path / "inputs")
    places = {name: tmp_path / name for name in ("cwd", "home", "tmp")}
    for place in places.values():
        place.mkdir()
    before = snapshot(inputs)
    done = spawn(
        *run_arguments(inputs, tmp_path / "out"),
        cwd=places["cwd"],
        HOME=str(places["home"]),
        TMPDIR=str(places["tmp"]),
    )
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stderr
    assert snapshot(inputs) == before
    assert {name: listing(place) for name, place in places.items()} == {
        "cwd": [], "home": [], "tmp": [],
    }  # fmt: skip


def test_a_finished_run_is_only_reported(blade: Run, tmp_path: Path) -> None:
    run = blade.copy(tmp_path / "out")
    before = snapshot(run.out)
    result = curate(*run_arguments(run.inputs, run.out))
    assert result.exit_code == 0, result.stderr
    assert f"Written to {run.out}:" in result.stdout
    assert result.stderr == ""
    assert snapshot(run.out) == before


def test_outputs_stay_useful_without_state(blade: Run, tmp_path: Path) -> None:
    run = blade.copy(tmp_path / "out")
    shutil.rmtree(run.out / "state")
    before = snapshot(run.out)
    assert curate("log", run.out).exit_code == 0
    done = curate("export", run.out, "--to", "jsonl", "--dest", tmp_path / "lines")
    assert done.exit_code == 0, done.stderr
    result = curate(*run_arguments(run.inputs, run.out))
    assert result.exit_code == 0, result.stderr
    assert f"Written to {run.out}:" in result.stdout
    assert snapshot(run.out) == before


# Seeds.


@pytest.mark.parametrize("settings", [{}, {"method": "random"}], ids=["blade", "random"])
def test_the_same_seed_gives_the_same_run(
    settings: dict[str, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = shared_run(tmp_path_factory, **settings)
    again = run_tiny(run.inputs, tmp_path / "again", **settings)
    assert_same_outcome(again, run)
    assert (again.out / "README.md").read_bytes() == (run.out / "README.md").read_bytes()


@pytest.mark.parametrize("settings", [{}, {"method": "random"}], ids=["blade", "random"])
def test_another_seed_decides_otherwise(
    settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = shared_run(tmp_path_factory, **settings)
    other = shared_run(tmp_path_factory, **settings, seed=1)
    kept = "SELECT document_id FROM document WHERE kept ORDER BY document_id"
    assert run.sql(kept) != other.sql(kept)
    tokens, largest = "SELECT kept_tokens FROM run", "SELECT max(tokens) FROM document"
    [(ours,)], [(theirs,)], [(document,)] = run.sql(tokens), other.sql(tokens), run.sql(largest)
    assert abs(ours - theirs) <= document


# Other schedules.


def test_weights_of_two_passes_and_a_rescore(strict: Run) -> None:
    """Under 2 / (e + 2) three visits have coefficients 1/6, 1/3 and 1/2."""
    assert visit_coefficients("linear", 3) == pytest.approx([1 / 6, 1 / 3, 1 / 2])
    values = {round(6 * merit, 9) for merit in merit_of(strict).values()}
    assert values <= {0, 1, 2, 3, 4, 5, 6}
    assert len(values) > 2


def test_the_rescore_is_a_round_of_its_own(strict: Run) -> None:
    rows = strict.sql(
        'SELECT method, "lambda", documents_scored, train_loss FROM round ORDER BY round'
    )
    assert [row[0] for row in rows[:-1]] == ["blade"] * (len(rows) - 1)
    assert rows[-1] == ("blade rescore", 0.5, SHARDS * (ROWS - 2), None)
    steps = strict.sql("SELECT model, count(*), max(step) + 1 FROM training GROUP BY model")
    assert {model for model, *_ in steps} == {"proxy", "reference"}
    assert all(count == last for _, count, last in steps)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_rounds_draw_the_share_of_the_pool_that_is_asked_for(tmp_path: Path, share: float) -> None:
    """Whether or not it is a whole number of rounds of T steps."""
    inputs = write_pool(tmp_path)
    settings = {"blade.round_share": share, "blade.sync_every": 3, "train.batch_tokens": 64}
    run = run_tiny(inputs, tmp_path / "out", **settings)
    drawn = run.sql("SELECT sum(tokens_scored) FROM round WHERE method = 'blade'")[0][0]
    pool, longest = run.sql("SELECT sum(tokens), max(tokens) FROM document")[0]
    assert len(run.sql("SELECT * FROM round")) > 2
    assert share * pool <= drawn < share * pool + 2 * 160 + longest
