import functools
import itertools
import statistics
from fractions import Fraction

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.records import DECISION, DOCUMENT, SELECTION
from curate.select.final import RoundScale, mark_top, select_documents
from curate.select.schedule import visit_coefficients

AVERAGES = {
    "last": lambda visits: [Fraction(0)] * (visits - 1) + [Fraction(1)],
    "uniform": lambda visits: [Fraction(1, visits)] * visits,
    "linear": lambda visits: [Fraction(2 * (e + 1), visits * (visits + 1)) for e in range(visits)],
}
"""The coefficients of the closed forms, exact."""


class Case:
    """A random pool with its decisions; every tenth document is empty."""

    def __init__(self, seed, documents=60, passes=3, rounds_per_pass=2, longest=30, scores=None):
        random = np.random.default_rng(seed)
        self.tokens = random.integers(1, longest + 1, documents).tolist()
        for row in range(0, documents, 10):
            self.tokens[row] = 0
        self.ids = [(row % 3 << 40) | row for row in range(documents)]
        self.visits = []
        for visit, row in itertools.product(range(passes), range(documents)):
            if self.tokens[row]:
                index = visit * rounds_per_pass + int(random.integers(rounds_per_pass))
                score = random.normal() if scores is None else scores(random)
                excess = float(np.float32(random.normal()))
                kept = bool(random.random() < 0.3)
                self.visits.append((row, visit, index, float(np.float32(score)), excess, kept))
        rounds = passes * rounds_per_pass
        self.scales = [
            (float(random.normal()), float(random.random() + 0.5)) for _ in range(rounds)
        ]
        self.passes, self.rounds_per_pass = passes, rounds_per_pass

    def document_table(self):
        n = len(self.ids)
        order = np.argsort(self.ids)
        ids = [self.ids[i] for i in order]
        tokens = [self.tokens[i] for i in order]
        places = [i >> 40 for i in ids], [i & 0xFFFF for i in ids]
        columns = [ids, *places, tokens, [9] * n, pa.nulls(n, pa.string())]
        return pa.table(columns, schema=DOCUMENT)

    def decision_table(self):
        rows = [
            (
                self.ids[row],
                index,
                tokens,
                9,
                tokens,
                2.0,
                1.0,
                excess,
                None,
                None,
                None,
                score,
                0.0,
                kept,
                tokens * kept,
            )
            for row, _, index, score, excess, kept in self.visits
            for tokens in [self.tokens[row]]
        ]
        return pa.table([list(column) for column in zip(*rows, strict=True)], schema=DECISION)

    def round_scales(self, average):
        coefficients = visit_coefficients(average, self.passes)
        return [
            RoundScale(index, coefficients[index // self.rounds_per_pass], *scale)
            for index, scale in enumerate(self.scales)
        ]

    def expected(self, average, keep):
        """In plain Python: average, fill by (weight, averaged standard score), normalize."""
        exact = AVERAGES[average](self.passes)
        found = {}
        for row, tokens in enumerate(self.tokens):
            mine = sorted(visit for visit in self.visits if visit[0] == row)
            if not mine:
                continue
            weight = sum(exact[v[1]] * v[5] for v in mine) / sum(exact[v[1]] for v in mine)
            standard = [(v[3] - self.scales[v[2]][0]) / self.scales[v[2]][1] for v in mine]
            shares = [float(exact[v[1]]) for v in mine]
            deciding = [v[2] for v in mine if v[5] and exact[v[1]]]
            found[self.ids[row]] = {
                "tokens": tokens,
                "weight": weight,
                "score": statistics.fmean(standard, shares),
                "excess_loss": statistics.fmean((v[4] for v in mine), shares),
                "round": max(deciding or [v[2] for v in mine]),
                "ever": any(v[5] for v in mine),
            }
        order = sorted(found, key=lambda one: (-found[one]["weight"], -found[one]["score"]))
        budget = keep * sum(self.tokens)
        kept, held = [], 0
        for one in order:
            tokens = found[one]["tokens"]
            if kept and abs(held + tokens - budget) > abs(held - budget):
                break
            kept.append(one)
            held += tokens
        positive = [found[one]["weight"] for one in kept if found[one]["weight"] > 0]
        filler = min(positive, default=Fraction(1))
        raw = {one: found[one]["weight"] or filler for one in kept}
        mean = sum(raw[one] * found[one]["tokens"] for one in kept) / held
        outcome = {}
        for one, tokens in zip(self.ids, self.tokens, strict=True):
            row = found.get(one, {"score": None, "excess_loss": None, "round": None, "weight": 0})
            ever = row.get("ever", False)
            chosen = bool(row["weight"])
            reason = {
                (True, True): "selected",
                (True, False): "filled",
                (False, True): "over_budget",
                (False, False): "overruled" if ever else "never_selected",
            }[one in raw, chosen]
            outcome[one] = {
                **{name: row[name] for name in ("score", "excess_loss", "round")},
                "weight": float(raw[one] / mean) if one in raw else 0.0,
                "kept": one in raw,
                "tokens_kept": tokens if one in raw else 0,
                "reason": reason if tokens else "empty",
            }
        return outcome


def write_parts(folder, name, table, cuts):
    edges = [0, *cuts, table.num_rows]
    paths = []
    for part, (first, last) in enumerate(itertools.pairwise(edges)):
        paths.append(folder / f"{name}-{part}.parquet")
        pq.write_table(table.slice(first, last - first), paths[-1])
    return paths


def select(
    case,
    folder,
    keep=0.3,
    average="uniform",
    seed=0,
    cuts=(20,),
    decision_cuts=(50, 51),
    order=None,
):
    decisions = case.decision_table()
    if order is not None:
        decisions = decisions.take(order)
    totals = select_documents(
        folder / "selection.parquet",
        documents=write_parts(folder, "documents", case.document_table(), cuts),
        decisions=write_parts(folder, "decisions", decisions, decision_cuts),
        scales=case.round_scales(average),
        keep=keep,
        seed=seed,
    )
    return totals, pq.read_table(folder / "selection.parquet")


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("keep", [0.02, 0.3, 0.55, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_selection_is_that_of_the_plain_definition(tmp_path, average, keep, seed):
    case = Case(seed)
    totals, table = select(case, tmp_path, keep, average)
    expected = case.expected(average, keep)
    assert table.schema.names == SELECTION.names
    assert table.schema.types == SELECTION.types
    assert table["document_id"].to_pylist() == sorted(case.ids)
    for row in table.to_pylist():
        wanted = expected[row.pop("document_id")]
        assert row == {
            name: value
            if isinstance(value, bool | str | int | None)
            else pytest.approx(value, 1e-5)
            for name, value in wanted.items()
        }
    tokens = dict(zip(case.ids, case.tokens, strict=True))
    kept = [row for row in table.to_pylist() if row["kept"]]
    assert totals.documents == len(kept)
    assert totals.tokens == sum(tokens[row["document_id"]] for row in kept)


@pytest.mark.parametrize("seed", range(20))
def test_budget_is_met_within_one_document_and_weights_average_one(tmp_path, seed):
    random = np.random.default_rng([seed, 1])
    case = Case(seed, passes=int(random.integers(1, 5)), scores=lambda r: float(r.integers(2)))
    keep = float(random.random() * 0.9 + 0.05)
    average = ["last", "uniform", "linear"][seed % 3]
    totals, table = select(case, tmp_path, keep, average)
    tokens = np.array([one for _, one in sorted(zip(case.ids, case.tokens, strict=True))])
    kept = table["kept"].to_numpy()
    weights = table["weight"].to_numpy().astype(np.float64)
    assert tokens[kept].sum() == totals.tokens
    assert abs(totals.tokens - keep * tokens.sum()) < max(tokens)
    assert np.average(weights[kept], weights=tokens[kept]) == pytest.approx(1, abs=1e-6)
    assert (weights[kept] > 0).all()
    assert (weights[~kept] == 0).all()
    assert not kept[tokens == 0].any()
    assert (table["reason"].to_numpy(zero_copy_only=False) == "empty").tolist() == (
        tokens == 0
    ).tolist()


def test_no_split_and_no_order_of_the_fragments_and_no_number_of_threads_matters(
    tmp_path, monkeypatch
):
    case = Case(3, documents=3000, scores=lambda r: float(r.integers(3)))
    expected = select(case, tmp_path)[1]
    connect = duckdb.connect
    shuffled = np.random.default_rng(0).permutation(len(case.visits))
    for threads, cuts, decision_cuts, order in (
        (1, (), (), None),
        (2, (1, 1000, 2999), (3000, 3001, 5000), None),
        (4, (1500,), (10,), shuffled),
    ):
        plain = functools.partial(connect, config={"threads": threads})
        monkeypatch.setattr("curate.select.final.duckdb.connect", plain)
        again = select(case, tmp_path, cuts=cuts, decision_cuts=decision_cuts, order=order)[1]
        assert again.equals(expected)


def test_ties_are_broken_by_the_seed_and_not_by_the_position(tmp_path):
    case = Case(0, documents=500, passes=1, rounds_per_pass=1, scores=lambda r: 1.0)
    case.visits = [(*visit[:5], False) for visit in case.visits]
    found = {}
    for seed in (0, 1, 2):
        _, table = select(case, tmp_path, seed=seed)
        found[seed] = np.flatnonzero(table["kept"].to_numpy())
        assert select(case, tmp_path, seed=seed)[1].equals(table)
        assert set(table["reason"].to_pylist()) == {"filled", "never_selected", "empty"}
        assert 180 < found[seed].mean() < 320
    overlap = len(set(found[0]) & set(found[1]))
    assert overlap < 0.7 * len(found[0])
    assert not np.array_equal(found[1], found[2])


def test_a_lower_weight_never_goes_before_a_higher_one_whatever_its_score(tmp_path):
    case = Case(0, documents=4, passes=2, rounds_per_pass=1)
    case.tokens = [10, 10, 10, 10]
    score = {0: -9.0, 1: 9.0, 2: 0.0, 3: 5.0}
    kept = {0: (True, True), 1: (False, True), 2: (True, False), 3: (False, False)}
    case.visits = [
        (row, visit, visit, score[row], 0.0, kept[row][visit])
        for visit in range(2)
        for row in range(4)
    ]
    case.scales = [(0.0, 1.0), (0.0, 1.0)]
    outcomes = {}
    for average in AVERAGES:
        for keep in (0.25, 0.5, 0.75):
            _, table = select(case, tmp_path, keep, average, cuts=(), decision_cuts=())
            rows = sorted(table.to_pylist(), key=lambda one: one["document_id"] & 0xFF)
            outcomes[average, keep] = [round(row["weight"], 4) for row in rows]
    assert outcomes["uniform", 0.25] == [1, 0, 0, 0]
    assert outcomes["uniform", 0.5] == [1.3333, 0.6667, 0, 0]
    assert outcomes["uniform", 0.75] == [1.5, 0.75, 0.75, 0]
    assert outcomes["linear", 0.75] == [1.5, 1.0, 0.5, 0]
    assert outcomes["last", 0.25] == [0, 1, 0, 0]
    assert outcomes["last", 0.5] == [1, 1, 0, 0]
    assert outcomes["last", 0.75] == [1, 1, 0, 1]


def test_a_document_not_visited_in_every_round_is_averaged_over_its_own_visits(tmp_path):
    case = Case(0, documents=3, passes=2, rounds_per_pass=1)
    case.tokens = [10, 10, 10]
    case.visits = [
        (0, 1, 1, 0.0, 0.0, True),
        (1, 0, 0, 0.0, 0.0, True),
        (1, 1, 1, 0.0, 0.0, False),
        (2, 0, 0, 0.0, 0.0, False),
    ]
    case.scales = [(0.0, 1.0), (0.0, 1.0)]
    _, table = select(case, tmp_path, 0.67, "linear", cuts=(), decision_cuts=())
    rows = sorted(table.to_pylist(), key=lambda one: one["document_id"] & 0xFF)
    assert [row["weight"] for row in rows] == pytest.approx([1.5, 0.5, 0])
    assert [row["round"] for row in rows] == [1, 0, 0]


def test_the_best_document_is_kept_however_small_the_budget(tmp_path):
    case = Case(2, passes=1, rounds_per_pass=1)
    expected = [one for one, row in case.expected("last", 1e-6).items() if row["kept"]]
    totals, table = select(case, tmp_path, 1e-6, "last")
    rows = [row for row in table.to_pylist() if row["kept"]]
    assert [row["document_id"] for row in rows] == expected
    assert rows[0]["weight"] == pytest.approx(1)
    assert totals.documents == 1
    pq.write_table(case.decision_table(), tmp_path / "scored")
    figures = mark_top(tmp_path / "marked", [tmp_path / "scored"], keep=1e-6, seed=0)
    assert figures["documents_kept"] == 1
    assert figures["threshold"] == max(visit[3] for visit in case.visits)


def test_scores_without_spread_count_as_average(tmp_path):
    case = Case(0)
    case.scales = [(5.0, 0.0)] * len(case.scales)
    _, table = select(case, tmp_path)
    assert set(table["score"].to_pylist()) == {0.0, None}


def test_methods_without_losses_have_no_excess_loss(tmp_path):
    case = Case(0)
    decisions = case.decision_table()
    nulls = pa.nulls(decisions.num_rows, pa.float32())
    place = decisions.schema.get_field_index("excess_loss")
    pq.write_table(decisions.set_column(place, DECISION.field(place), nulls), tmp_path / "d")
    select_documents(
        tmp_path / "selection.parquet",
        documents=write_parts(tmp_path, "documents", case.document_table(), ()),
        decisions=[tmp_path / "d"],
        scales=case.round_scales("uniform"),
        keep=0.3,
        seed=0,
    )
    table = pq.read_table(tmp_path / "selection.parquet")
    assert table["excess_loss"].null_count == table.num_rows
    assert table["score"].null_count == 6


@pytest.mark.parametrize(
    "name",
    ["score", "round", "kept", "weight", "units", "tokens", "document_id", "excess_loss", "Score"],
)
def test_metadata_columns_may_have_any_name(tmp_path, name):
    case = Case(0)
    _, expected = select(case, tmp_path)
    table = case.document_table()
    values = pa.array(np.arange(table.num_rows) + 0.5)
    pq.write_table(table.append_column(name, values), tmp_path / "documents")
    select_documents(
        tmp_path / "selection.parquet",
        documents=[tmp_path / "documents"],
        decisions=write_parts(tmp_path, "decisions", case.decision_table(), ()),
        scales=case.round_scales("uniform"),
        keep=0.3,
        seed=0,
    )
    assert pq.read_table(tmp_path / "selection.parquet").equals(expected)


def test_a_path_with_a_quote_is_only_a_path(tmp_path):
    folder = tmp_path / "it's"
    folder.mkdir()
    totals, table = select(Case(0), folder)
    assert totals.documents == sum(table["kept"].to_pylist())
    case = Case(1)
    pq.write_table(case.decision_table(), folder / "scored")
    mark_top(folder / "marked", [folder / "scored"], keep=0.5, seed=0)
    assert {path.name for path in folder.iterdir() if path.suffix != ".parquet"} == {
        "scored",
        "marked",
    }


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.6, 1.0])
def test_mark_top_decides_all_rows_at_once(tmp_path, keep):
    case = Case(4, passes=1, rounds_per_pass=1)
    scored = case.decision_table()
    pq.write_table(scored, tmp_path / "scored.parquet")
    figures = mark_top(
        tmp_path / "marked.parquet", [tmp_path / "scored.parquet"], keep=keep, seed=0
    )
    marked = pq.read_table(tmp_path / "marked.parquet")
    assert marked.schema.names == DECISION.names
    assert marked.schema.types == DECISION.types
    decided = ("kept", "threshold", "tokens_kept")
    others = [name for name in DECISION.names if name not in decided]
    expected = [row["tokens"] if row["kept"] else 0 for row in marked.to_pylist()]
    assert marked["tokens_kept"].to_pylist() == expected
    by_id = [("document_id", "ascending")]
    before, after = (one.sort_by(by_id).select(others).to_pylist() for one in (scored, marked))
    assert after == before

    rows = sorted(scored.to_pylist(), key=lambda row: -row["score"])
    sums = [*itertools.accumulate(row["tokens"] for row in rows)]
    count = 1 + min(range(len(sums)), key=lambda i: abs(sums[i] - keep * sums[-1]))
    kept = {row["document_id"] for row in rows[:count]}
    assert {row["document_id"] for row in marked.to_pylist() if row["kept"]} == kept
    assert figures == {
        "threshold": rows[count - 1]["score"],
        "documents_kept": count,
        "tokens_kept": sums[count - 1],
    }
    assert set(marked["threshold"].to_pylist()) == {figures["threshold"]}


def test_mark_top_breaks_ties_by_the_seed_whatever_the_order(tmp_path):
    case = Case(5, documents=400, passes=1, rounds_per_pass=1, scores=lambda r: -0.25)
    scored = case.decision_table()
    random = np.random.default_rng(0)

    def kept(seed):
        order = random.permutation(scored.num_rows)
        pq.write_table(scored.take(order), tmp_path / "scored.parquet")
        mark_top(tmp_path / "marked.parquet", [tmp_path / "scored.parquet"], keep=0.5, seed=seed)
        rows = pq.read_table(tmp_path / "marked.parquet").to_pylist()
        return {row["document_id"] for row in rows if row["kept"]}

    assert kept(0) == kept(0)
    assert kept(0) != kept(1)


@pytest.mark.parametrize("name", ["x[1]", "x*", "x?", "[x]1", "x[0-9]"])
def test_a_path_that_looks_like_a_pattern_is_only_a_path(tmp_path, name):
    """Beside folders that the pattern would match."""
    folder, other = tmp_path / name, Case(1)
    for place in ("x1", "x", "x[1]2", "xy"):
        (tmp_path / place).mkdir()
        select(other, tmp_path / place)
        pq.write_table(other.decision_table(), tmp_path / place / "scored")
    folder.mkdir()
    totals, table = select(Case(0), folder)
    (tmp_path / "plain").mkdir()
    expected, rows = select(Case(0), tmp_path / "plain")
    assert totals == expected
    assert table.equals(rows)
    marked = {}
    for place in (folder, tmp_path / "plain"):
        pq.write_table(Case(0).decision_table(), place / "scored")
        marked[place] = mark_top(place / "marked", [place / "scored"], keep=0.5, seed=0)
    assert len({str(one) for one in marked.values()}) == 1
