"""Text to token ids: a byte-level BPE trained on the pool, or a pretrained model's own tokenizer.

Documents are encoded without special tokens, and special tokens spelt out inside a document are
encoded as plain text, so no document can end another. `prefix_id`, the model's document separator,
is put in front by `read.windows`.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

from curate.clock import COUNT, doing
from curate.errors import DamagedShard, InvalidInput
from curate.files import atomic_folder
from curate.noise import make_key, shuffled_order, uniform
from curate.read.corpus import Corpus, Shard, bad_row
from curate.read.decode import decode_tokens
from curate.read.documents import Documents
from curate.read.locate import display_uri
from curate.read.schema import take_rows
from curate.records import make_document_id

NOT_UTF8 = "the text is not UTF-8"
SEPARATOR = "<|endoftext|>"
_SAMPLE_SPREAD = 4
_LONGEST_SAMPLE_TEXT = 100_000
_BATCH_CHARACTERS = 1 << 20
_WORD_START = re.compile(r"\S(?= \S)")


class TextTokenizer:
    """A fast tokenizer and the id of its document separator."""

    def __init__(self, tokenizer: Any) -> None:
        """Wrap a transformers tokenizer.

        Raises:
            InvalidInput: it has no fast backend, or no token that could separate documents.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        prefix = tokenizer.bos_token_id
        prefix = tokenizer.eos_token_id if prefix is None else prefix
        if backend is None or prefix is None:
            lacking = "fast tokenizer" if backend is None else "bos or eos token"
            raise InvalidInput(
                f"The tokenizer of {tokenizer.name_or_path} has no {lacking}.",
                "Choose a model with a tokenizer.json that names a bos or eos token.",
            )
        self._tokenizer = tokenizer
        self._backend: tokenizers.Tokenizer = backend
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        self.prefix_id = int(prefix)

    @property
    def vocabulary_size(self) -> int:
        """Token ids lie in [0, vocabulary_size)."""
        return len(self._tokenizer)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the vocabulary and every rule; tokenizers that share it encode alike."""
        return hashlib.sha256(f"{self.prefix_id} {self.to_json()}".encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.integer]]:
        """Token ids of each text, without special tokens.

        Memory is bounded by one text: the backend holds some 300 bytes a token until it returns, so
        it gets a million characters at a time, and a longer text in pieces that begin with a space.
        """
        found: list[npt.NDArray[np.integer]] = []
        held: list[str] = []
        characters = 0
        for text in texts:
            if characters + len(text) > _BATCH_CHARACTERS:
                found.extend(self._encode(held))
                held, characters = [], 0
            if len(text) > _BATCH_CHARACTERS:
                parts = [self._encode([piece])[0] for piece in text_pieces(text, _BATCH_CHARACTERS)]
                found.append(np.concatenate(parts))
            else:
                held.append(text)
                characters += len(text)
        return found + self._encode(held)

    def _encode(self, texts: list[str]) -> list[npt.NDArray[np.integer]]:
        kind = np.uint16 if self.vocabulary_size <= 1 << 16 else np.int32
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=kind) for encoding in encodings]

    @doing(COUNT)
    def decode(self, documents: Documents) -> list[str]:
        """The text of each document; exact for byte-level tokenizers."""
        return decode_tokens(self._backend, documents.offsets, documents.input_ids)

    def to_json(self) -> str:
        """The vocabulary and every rule."""
        return self._backend.to_str()

    def save(self, folder: Path) -> None:
        """Write the tokenizer as `AutoTokenizer.from_pretrained` reads it, whole or not at all."""
        with atomic_folder(folder) as temporary:
            self._tokenizer.save_pretrained(str(temporary))


def text_pieces(text: str, longest: int) -> Iterator[str]:
    """Cut a text into pieces of at most `longest` characters, before a space between two words.

    Byte-level tokenizers encode them as they encode the whole. Where the second half of a piece has
    no such place, it is cut at its end.
    """
    first = 0
    while len(text) - first > longest:
        window = text[first + longest // 2 : first + longest + 1]
        places = [place.start() for place in _WORD_START.finditer(window)]
        last = first + (longest // 2 + places[-1] + 1 if places else longest)
        yield text[first:last]
        first = last
    yield text[first:]


def load_tokenizer(source: str) -> TextTokenizer:
    """The tokenizer in a folder, or of a Hub id; never runs code of the model's repository.

    Raises:
        InvalidInput: there is none that can be loaded.
    """
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception:  # a tokenizer of somebody else's can fail in any way
        raise InvalidInput(
            f"The model {display_uri(source)} has no tokenizer that can be loaded.",
            "Choose a model with a tokenizer.json that names a bos or eos token.",
        ) from None
    return TextTokenizer(loaded)


def train_tokenizer(texts: Iterator[str], vocabulary_size: int) -> TextTokenizer:
    """Train a byte-level BPE; equal texts in equal order give an equal tokenizer."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    wrap: Any = transformers.PreTrainedTokenizerFast
    wrapped = wrap(
        tokenizer_object=backend, bos_token=SEPARATOR, eos_token=SEPARATOR, pad_token=SEPARATOR
    )
    return TextTokenizer(wrapped)


def sample_texts(
    corpus: Corpus,
    seed: int,
    sample_bytes: int,
    on_read: Callable[[Shard, pa.Array], None] = lambda shard, texts: None,
) -> Iterator[str]:
    """A random sample of the pool's texts of about `sample_bytes` UTF-8 bytes.

    Reads whole shards in random order until they hold four times the sample, and thins them, so
    that the cost is bounded by the sample and one shard, not by the pool. A shard that turns out
    damaged gives what precedes the damage.

    Args:
        corpus: the pool.
        seed: of the choice.
        sample_bytes: about how much to choose.
        on_read: told of all texts that are read, in batches of a shard, chosen or not.
    """
    share = _text_share(corpus)
    shards = _spread_shards(corpus.sound, seed, sample_bytes / share)
    available = max(1, share * sum(shard.text_bytes for shard in shards))
    key = make_key(seed, "tokenizer sample")
    for shard in shards:
        with contextlib.suppress(DamagedShard):
            for first_row, batch in corpus.iter_batches(shard, columns=[corpus.text_column]):
                ids = make_document_id(shard.shard_id, 0) + first_row + np.arange(batch.num_rows)
                chosen = np.flatnonzero(uniform(key, ids) * available < sample_bytes)
                on_read(shard, batch.column(0))
                for text in text_values(take_rows(batch, chosen).column(0)):
                    yield text[:_LONGEST_SAMPLE_TEXT]


def text_values(column: pa.Array) -> list[str]:
    """Python strings of a text column of any string type; null becomes the empty string.

    Bytes that are not UTF-8, which Parquet does not rule out, become the empty string too.
    """
    return read_texts(column)[0]


def read_texts(column: pa.Array) -> tuple[list[str], list[int]]:
    """As `text_values`, and the places of the texts that are not UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    with contextlib.suppress(UnicodeDecodeError):
        return [text or "" for text in column.to_pylist()], []
    texts: list[str] = []
    bad: list[int] = []
    values = column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
    for place, value in enumerate(values):
        try:
            texts.append((value or b"").decode())
        except UnicodeDecodeError:
            texts.append("")
            bad.append(place)
    return texts, bad


def sound_texts(column: pa.Array, shard: Shard, first_row: int) -> list[str]:
    """As `text_values`, where every text is needed.

    Raises:
        InvalidInput: one is not UTF-8.
    """
    texts, bad = read_texts(column)
    if bad:
        raise bad_row(shard, first_row + bad[0], NOT_UTF8)
    return texts


def text_bytes(column: pa.Array) -> npt.NDArray[np.int64]:
    """UTF-8 bytes of each text, int64; 0 for null."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    lengths = pc.fill_null(pc.binary_length(column.cast(pa.large_string())), 0)
    return np.asarray(lengths.cast(pa.int64()).to_numpy(zero_copy_only=False))


def _text_share(corpus: Corpus) -> float:
    """The share of the text in what shards call `text_bytes`, as a first batch tells.

    That figure is of all columns (see `read.parquet`), of which text is the most by far, unless
    there are embeddings or pictures: half of it or more is taken for all.
    """
    for shard in corpus.sound:
        with contextlib.suppress(DamagedShard):
            for _, batch in corpus.iter_batches(shard):
                text = int(text_bytes(batch.column(corpus.text_column)).sum())
                if text:
                    return text / batch.nbytes if 2 * text < batch.nbytes else 1.0
    return 1.0


def _spread_shards(shards: Sequence[Shard], seed: int, sample_bytes: float) -> list[Shard]:
    order = shuffled_order(make_key(seed, "tokenizer shards"), [s.shard_id for s in shards])
    chosen: list[Shard] = []
    held = 0
    for position in order:
        if held >= _SAMPLE_SPREAD * sample_bytes:
            break
        chosen.append(shards[position])
        held += shards[position].text_bytes
    return sorted(chosen, key=lambda shard: shard.shard_id)
