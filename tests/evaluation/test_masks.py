"""Runs at token granularity: the mask says which tokens are labels, all of them are context."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from evaluation_helpers import SMALL, evaluate_small, small_preset, write_test  # noqa: F401
from run_helpers import Run, curate, run_tiny, shared_run
from tiny_models import one_thread  # noqa: F401

from curate.evaluation.arms import pass_over
from curate.evaluation.runs import open_run, read_kept
from curate.evaluation.tokens import dataset_store
from curate.noise import Sample
from curate.read.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return shared_run(tmp_path_factory, granularity="token")


@pytest.fixture
def test_set(tmp_path: Path) -> Path:
    return write_test(tmp_path / "test.parquet")


def test_rows_have_the_masks_of_the_parts(finished: Run) -> None:
    run = open_run(finished.out)
    tokenizer = load_tokenizer(str(run.tokenizer_folder))
    log = dict(finished.sql("SELECT document_id, tokens_kept FROM document WHERE kept"))
    sizes = dict(finished.sql("SELECT document_id, tokens FROM document WHERE kept"))
    seen = 0
    for rows in read_kept(run, tokenizer):
        documents = rows.documents
        assert documents.counted is not None
        for one, text in enumerate(rows.texts):
            number = int(documents.ids[one])
            first, last = documents.offsets[one], documents.offsets[one + 1]
            assert last - first == sizes[number]
            assert documents.counted[first:last].sum() == log[number]
            encoded = tokenizer.encode([text])[0].tolist()
            assert documents.input_ids[first:last].tolist() == encoded
            seen += 1
        assert rows.weights.tolist() == [1.0] * len(documents)
    assert seen == len(log)


def test_an_epoch_has_each_document_once_with_its_mask(finished: Run, tmp_path: Path) -> None:
    run = open_run(finished.out)
    tokenizer = load_tokenizer(str(run.tokenizer_folder))
    nobody = Sample(0, 0.0)
    store = dataset_store(run, tokenizer, nobody, frozenset(), tmp_path)
    log = dict(finished.sql("SELECT document_id, tokens_kept FROM document WHERE kept"))
    for epoch in itertools.islice(pass_over(store, 0, 1 << 20), 2):
        assert sorted(epoch.ids.tolist()) == sorted(log)
        assert epoch.counted is not None
        labels = np.add.reduceat(epoch.counted.astype(int), epoch.offsets[:-1])
        assert dict(zip(epoch.ids.tolist(), labels.tolist(), strict=True)) == log


def test_an_evaluation_of_masks(finished: Run, test_set: Path, tmp_path: Path) -> None:
    run = finished.copy(tmp_path / "out")
    report = evaluate_small(run, test_set, seeds=1)[0].report
    sizes = report["sizes"]["datasets"]["curated"]
    assert 0 < sizes["label_tokens"] < sizes["tokens"]
    pool = report["sizes"]["pool_tokens"] - report["sizes"]["test_sets"]["general"]["tokens"]
    assert report["sizes"]["random_sample_tokens"] == round(0.2 * pool)


def test_four_times_the_labels_is_the_default(
    finished: Run, test_set: Path, tmp_path: Path
) -> None:
    run = finished.copy(tmp_path / "out")
    report = evaluate_small(run, test_set, seeds=1, tokens=None, batch_tokens=512)[0].report
    labels = report["sizes"]["datasets"]["curated"]["label_tokens"]
    assert report["settings"]["tokens"] == 4 * labels


def test_masks_need_their_own_tokenizer(finished: Run, test_set: Path, tmp_path: Path) -> None:
    """A document run over the same pool, with a smaller vocabulary, against one with masks."""
    plain = run_tiny(
        finished.inputs, tmp_path / "plain", method="random", model__vocabulary_size=270
    )
    flags = [
        part for key, value in SMALL.items() for part in (f"--{key.replace('_', '-')}", str(value))
    ]
    result = curate("evaluate", plain.out, "--test", test_set, "--against", finished.out, *flags)
    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: The run in {finished.out} kept tokens of another tokenizer than the one that this "
        "evaluation reads with.\n"
        "To fix: Evaluate runs at token granularity with a preset, and against runs of the same "
        "tokenizer.\n"
    )
