import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import InvalidInput
from curate.files import sha256_file
from curate.read.corpus import open_corpus
from curate.read.tokenizer import (
    SEPARATOR,
    TextTokenizer,
    load_tokenizer,
    sample_texts,
    text_bytes,
    text_pieces,
    text_values,
    train_tokenizer,
)

TEXTS = ["the cat sat on the mat", "the dog sat on the log", "les élèves étudient", "x = x + 1\n"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(iter(TEXTS * 5), 280).save(folder)
    return folder


@pytest.fixture(scope="module")
def trained(saved):
    return load_tokenizer(str(saved))


@pytest.fixture(scope="module")
def decode(saved):
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(saved))
    return lambda ids: tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", SEPARATOR, " the", "\n", "é", "🙂", "\x00", "<|"])))
def test_any_text_comes_back_and_never_holds_the_separator(trained, decode, parts):
    text = "".join(parts)
    (ids,) = trained.encode([text])
    assert trained.prefix_id not in ids
    assert decode(ids) == text
    assert bool(len(ids)) == bool(text)
    assert (ids < trained.vocabulary_size).all()


_PARTS = st.sampled_from(
    ["the", "cat", " ", "  ", "\n", "é", "🙂", "'s", "12", ".", "\x1c", "\u3000"]
)


@settings(deadline=None)
@given(st.lists(_PARTS, max_size=60).map("".join), st.integers(1, 30))
def test_pieces_of_a_long_text_are_encoded_as_the_whole(trained, text, longest):
    pieces = list(text_pieces(text, longest))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= longest for piece in pieces) or not text
    whole, *parts = trained.encode([text, *pieces])
    if all(piece.startswith(" ") and piece[1:2].strip() for piece in pieces[1:]):
        assert [one for part in parts for one in part] == whole.tolist()


def test_long_texts_keep_their_places(trained, monkeypatch):
    texts = ["the cat " * 9, "", "the", "dog " * 20, "mat " * 3, "x" * 70, "log"]
    whole = [one.tolist() for one in trained.encode(texts)]
    monkeypatch.setattr("curate.read.tokenizer._BATCH_CHARACTERS", 30)
    parts = trained.encode(texts)
    assert [one.tolist() for one in parts] == whole
    assert len({one.dtype for one in parts}) == 1


def test_a_saved_tokenizer_is_the_same_tokenizer(saved, trained):
    fresh = train_tokenizer(iter(TEXTS * 5), 280)
    assert fresh.vocabulary_size == trained.vocabulary_size <= 280
    assert fresh.prefix_id == trained.prefix_id
    texts = [*TEXTS, "", SEPARATOR, "unseen ∑"]
    ours, theirs = fresh.encode(texts), trained.encode(texts)
    assert [one.tolist() for one in ours] == [one.tolist() for one in theirs]
    assert sum(map(len, ours[:4])) < sum(len(text.encode()) for text in TEXTS)


def test_training_twice_gives_the_same_files(saved, tmp_path):
    train_tokenizer(iter(TEXTS * 5), 280).save(tmp_path)
    names = sorted(one.name for one in saved.iterdir())
    assert names == sorted(one.name for one in tmp_path.iterdir())
    for name in names:
        assert sha256_file(saved / name) == sha256_file(tmp_path / name)


def test_a_text_is_encoded_alike_alone_and_in_a_batch(trained):
    long = "the cat " * 3000
    texts = ["", "a", long, "the mat"]
    together = [one.tolist() for one in trained.encode(texts)]
    assert together == [trained.encode([text])[0].tolist() for text in texts]
    assert together[0] == []
    assert trained.encode([]) == []


def test_a_pretrained_tokenizer_that_adds_tokens_and_truncates_is_used_without_both(tmp_path):
    plain = train_tokenizer(iter(TEXTS * 5), 280)
    plain.save(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    backend = loaded.backend_tokenizer
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    text = f"the cat sat {SEPARATOR} on the mat" * 9
    assert TextTokenizer(loaded).encode([text])[0].tolist() == plain.encode([text])[0].tolist()


def test_a_tokenizer_without_separator_is_refused(tmp_path):
    train_tokenizer(iter(TEXTS), 257).save(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    loaded.bos_token = loaded.eos_token = None
    with pytest.raises(InvalidInput) as caught:
        TextTokenizer(loaded)
    assert caught.value.problem == f"The tokenizer of {tmp_path} has no bos or eos token."


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_text_columns_of_every_kind(kind):
    column = pa.array(["é", None, "", "abc"], kind)
    assert text_values(column) == ["é", "", "", "abc"]
    assert text_bytes(column).tolist() == [2, 0, 0, 3]
    assert text_bytes(column.slice(2)).tolist() == [0, 3]


def test_text_columns_as_dictionaries():
    column = pa.array(["é", None, "é", "abc"]).dictionary_encode()
    assert text_values(column) == ["é", "", "é", "abc"]
    assert text_bytes(column).tolist() == [2, 0, 2, 3]


def sample_pool(folder, shards=6, rows=200):
    for shard in range(shards):
        texts = [f"{shard:02d}-{row:04d}" + "." * 93 for row in range(rows)]
        pq.write_table(pa.table({"text": texts}), folder / f"{shard}.parquet")
    return open_corpus(str(folder))


def test_a_sample_as_large_as_the_pool_is_the_pool(tmp_path):
    corpus = sample_pool(tmp_path)
    sampled = list(sample_texts(corpus, 0, 10**9))
    assert len(set(sampled)) == len(sampled) == 1200


def test_a_sample_has_about_the_size_asked_for_and_follows_the_seed(tmp_path):
    corpus = sample_pool(tmp_path)
    sampled = list(sample_texts(corpus, 0, 20_000))
    assert 140 < len(sampled) < 260
    assert sampled == list(sample_texts(corpus, 0, 20_000))
    other = list(sample_texts(corpus, 1, 20_000))
    assert len(set(sampled) & set(other)) < 0.6 * len(sampled)
    assert len({text[:2] for text in sampled}) >= 4
    assert len({text[3:7] for text in sampled}) > 100


@pytest.mark.parametrize("dimensions", [1, 500])
def test_other_columns_take_nothing_from_the_sample(tmp_path, dimensions):
    """Two kilobytes of embeddings beside a hundred bytes of text."""
    for shard in range(6):
        texts = [f"{shard:02d}-{row:04d}" + "." * 93 for row in range(200)]
        vectors = np.random.default_rng(shard).normal(size=200 * dimensions).astype(np.float32)
        embeddings = pa.FixedSizeListArray.from_arrays(pa.array(vectors), dimensions)
        table = pa.table({"vector": embeddings, "text": texts})
        pq.write_table(table, tmp_path / f"{shard}.parquet", use_dictionary=False)
    sampled = list(sample_texts(open_corpus(str(tmp_path)), 0, 20_000))
    assert 140 < len(sampled) < 260
    assert len({text[:2] for text in sampled}) >= 4
