"""The log of whole runs at a tiny size: what it says is what was decided."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_helpers import ROWS, SHARDS, STRICT, Run, shared_run


@pytest.mark.parametrize(
    ("settings", "visits"),
    [({"blade__round_share": 1.0}, 2), ({"method": "random"}, 1), (STRICT, 3)],
)
def test_a_decision_for_every_visit(
    settings: dict[str, Any], visits: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = shared_run(tmp_path_factory, **settings)
    counts = run.sql("SELECT count(*), count(DISTINCT round) FROM decision GROUP BY document_id")
    assert counts == [(visits, visits)] * (SHARDS * (ROWS - 2))


def test_what_the_deciding_scoring_drops_after_a_round_kept_it_is_overruled(blade: Run) -> None:
    verdicts = dict(
        blade.sql("SELECT document_id, list(kept ORDER BY round) FROM decision GROUP BY ALL")
    )
    overruled = blade.sql("SELECT document_id, kept, weight FROM document "
                          "WHERE reason = 'overruled'")  # fmt: skip
    assert {one for one, *_ in overruled} == {
        one for one, kept in verdicts.items() if kept == [True, False]
    }
    assert overruled
    assert all((kept, weight) == (False, 0) for _, kept, weight in overruled)
    last = f"SELECT explanation FROM why({overruled[0][0]}) WHERE round IS NULL"
    assert blade.sql(last) == [
        ("Dropped: kept in 1 of 2 rounds, but not in the one that decides.",)
    ]


def test_rounds_are_the_sums_of_their_decisions(finished: Run) -> None:
    figures = "documents_scored, documents_kept, tokens_scored, tokens_kept"
    assert finished.sql(f"SELECT round, {figures} FROM round ORDER BY round") == finished.sql(
        "SELECT round, count(*), count(*) FILTER (kept), sum(tokens), "
        "coalesce(sum(tokens) FILTER (kept), 0) FROM decision GROUP BY round ORDER BY round"
    )


def test_each_round_keeps_its_share(finished: Run) -> None:
    for scored, kept, largest in finished.sql(
        "SELECT tokens_scored, tokens_kept, (SELECT max(tokens) FROM decision d "
        "WHERE d.round = r.round) FROM round r"
    ):
        assert abs(kept - 0.2 * scored) < largest


@pytest.mark.parametrize("method", ["blade", "color", "perplexity"])
def test_models_read_a_sample_of_a_long_document_and_the_log_says_so(
    method: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = shared_run(tmp_path_factory, method=method, score_tokens=8)
    whole = shared_run(tmp_path_factory, **({} if method == "blade" else {"method": method}))
    read = run.sql("SELECT document_id, tokens, tokens_read, proxy_loss FROM decision WHERE "
                   "round = 0 ORDER BY document_id")  # fmt: skip
    assert all(count == min(tokens, 8) for _, tokens, count, _ in read)
    before = dict(whole.sql("SELECT document_id, proxy_loss FROM decision WHERE round = 0"))
    changed = {tokens > 8: [] for _, tokens, *_ in read}
    for document, tokens, _, loss in read:
        changed[tokens > 8].append(abs(loss - before[document]) > 1e-4)
    assert all(changed[True])
    assert not any(changed.get(False, []))
    longest = "SELECT document_id FROM document ORDER BY tokens DESC LIMIT 1"
    words = run.sql(f"SELECT explanation FROM why(({longest})) ORDER BY round")[0][0]
    assert ": read 8 of its tokens; " in words


def test_no_document_is_visited_twice_in_a_round(finished: Run) -> None:
    assert finished.sql("SELECT count(*) FROM decision") == finished.sql(
        "SELECT count(*) FROM (SELECT DISTINCT document_id, round FROM decision)"
    )


def test_losses_make_the_score(strict: Run) -> None:
    rows = strict.sql("SELECT proxy_loss, reference_loss, excess_loss, score FROM decision")
    for proxy, reference, excess, score in rows:
        assert excess == pytest.approx(proxy - reference, abs=2e-6)
        assert score == pytest.approx(0.5 * excess, abs=2e-6)


def test_run_totals(finished: Run) -> None:
    [totals] = finished.sql(
        "SELECT pool_documents, pool_tokens, kept_documents, kept_tokens, target_documents FROM run"
    )
    [counted] = finished.sql(
        "SELECT count(*), sum(tokens), count(*) FILTER (kept), sum(tokens) FILTER (kept) "
        "FROM document"
    )
    shards = finished.sql('SELECT sum("rows"), sum(tokens), sum(documents) FROM shard')
    assert totals == (*counted, 12)
    assert shards == [(counted[0], counted[1], SHARDS * (ROWS - 2))]


def test_the_comment_on_pool_documents_is_true(blade: Run) -> None:
    [(comment,)] = blade.sql(
        "SELECT comment FROM duckdb_columns() WHERE column_name = 'pool_documents'"
    )
    [(documents,)] = blade.sql("SELECT pool_documents FROM run")
    with_tokens = "at least one token" in comment
    assert documents == SHARDS * (ROWS - 2 if with_tokens else ROWS)


def test_the_log_opens_without_curate(blade: Run, tmp_path: Path) -> None:
    program = (
        "import importlib.abc, sys\n"
        "class No(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.split('.')[0] in ('curate', 'torch'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, No())\n"
        "import duckdb\n"
        "log = duckdb.connect(sys.argv[1], read_only=True)\n"
        "print(log.execute('SELECT sum(kept::INT), (SELECT count(*) FROM kept), "
        "(SELECT count(*) FROM why(0)) FROM document').fetchone())\n"
        "try:\n    import curate\nexcept ImportError:\n    print('no curate')\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, str(blade.log)],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    [(kept,)] = blade.sql("SELECT count(*) FROM document WHERE kept")
    assert done.stdout == f"({kept}, {kept}, 3)\nno curate\n"


def test_targets_come_closer_at_every_sync(blade: Run) -> None:
    """The reference has taken steps on the target that the proxy has not."""
    for proxy, reference in blade.sql("SELECT target_loss_proxy, target_loss_reference FROM round"):
        assert reference < proxy
