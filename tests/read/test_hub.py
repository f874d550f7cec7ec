import datasets
import fsspec
import pyarrow as pa
import pytest

from curate.errors import InvalidInput
from curate.read.corpus import open_corpus
from curate.read.schema import BATCH_BYTES

ROWS = {"text": [f"doc {i}" for i in range(10)], "n": list(range(10))}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def saved(tmp_path):
    datasets.Dataset.from_dict(ROWS).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def read(corpus, **options):
    pairs = list(corpus.iter_batches(corpus.shards[0], batch_rows=4, **options))
    assert [first for first, _ in pairs] == [0, 4, 8]
    return pa.Table.from_batches([batch for _, batch in pairs]).to_pydict()


def test_saved_dataset(saved):
    corpus = open_corpus(str(saved))
    (shard,) = corpus.shards
    assert (shard.shard_id, shard.uri, shard.format, shard.rows) == (0, str(saved), "hub", 10)
    assert shard.bytes >= shard.text_bytes >= 50
    assert shard.fingerprint == open_corpus(str(saved)).shards[0].fingerprint
    assert corpus.schema.names == ["text", "n"]
    assert b"huggingface" in corpus.schema.metadata
    assert read(corpus) == ROWS
    assert read(corpus, columns=["n"]) == {"n": ROWS["n"]}


def test_batches_of_large_rows_are_bounded_in_bytes(tmp_path):
    texts = [f"{i:0600000d}" for i in range(60)]
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(tmp_path / "saved")
    corpus = open_corpus(str(tmp_path / "saved"))
    rows = [batch for _, batch in corpus.iter_batches(corpus.shards[0])]
    assert all(batch.nbytes < 1.1 * BATCH_BYTES for batch in rows)
    assert [text for batch in rows for text in batch["text"].to_pylist()] == texts


def test_saved_dataset_behind_a_url(saved):
    memory = fsspec.filesystem("memory")
    memory.put(str(saved), "/saved-dataset", recursive=True)
    corpus = open_corpus("memory://saved-dataset")
    assert corpus.shards[0].uri == "memory:///saved-dataset"
    assert read(corpus) == ROWS


def test_saved_dataset_is_checked_like_any_other(saved):
    with pytest.raises(InvalidInput) as caught:
        open_corpus(str(saved), role="target", text_column="body")
    assert caught.value.problem == 'The target has no column "body" (it has: text, n).'


def test_dataset_dict_asks_for_one_split(tmp_path):
    data = datasets.Dataset.from_dict(ROWS)
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "dict")
    with pytest.raises(InvalidInput) as caught:
        open_corpus(f"{tmp_path}/dict/")
    assert caught.value.problem == (
        f"The pool path {tmp_path}/dict/ holds several splits of a dataset."
    )
    assert caught.value.remedy == "Name the folder of one split in it."
    assert open_corpus(f"{tmp_path}/dict/test").shards[0].rows == 10


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("", range(6)),
        ("?split=train", range(6)),
        ("?split=test", range(6, 10)),
        ("?split=train%2Btest", range(10)),
        ("?split=train+test", range(10)),
        ("?split=train[:2]&config=default", range(2)),
    ],
)
def test_by_name(tmp_path, query, rows):
    folder = tmp_path / "named"
    folder.mkdir()
    data = datasets.Dataset.from_dict(ROWS)
    data.select(range(6)).to_parquet(folder / "train.parquet")
    data.select(range(6, 10)).to_parquet(folder / "test.parquet")
    corpus = open_corpus(f"hf:{folder}{query}")
    (shard,) = corpus.shards
    assert (shard.uri, shard.format, shard.rows) == (f"hf:{folder}{query}", "hub", len(rows))
    texts = [t for _, b in corpus.iter_batches(shard, ["text"]) for t in b["text"].to_pylist()]
    assert texts == [ROWS["text"][i] for i in rows]


def test_a_name_that_cannot_be_loaded(tmp_path):
    with pytest.raises(InvalidInput) as caught:
        open_corpus(f"hf:{tmp_path}/nowhere")
    assert caught.value.problem == (
        f"The pool dataset hf:{tmp_path}/nowhere could not be loaded "
        f"(Couldn't find any data file at {tmp_path}/nowhere)."
    )
    assert caught.value.remedy == (
        "Check its name, config, split and revision, and that the Hub or your cache has it."
    )


def test_unknown_option_does_not_echo_its_value():
    with pytest.raises(InvalidInput) as caught:
        open_corpus("hf:owner/name?token=SECRET")
    assert caught.value.problem == 'The pool hf:owner/name has an unknown option "token".'
    assert "SECRET" not in str(caught.value)
