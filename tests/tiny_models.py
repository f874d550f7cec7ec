"""Minuscule models, documents and pools, and the plain definitions they are held against."""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from curate.config.schema import BladeConfig, Config, ModelConfig, TrainConfig
from curate.read.cache import TokenCache, draw_blocks, write_fragments
from curate.read.corpus import open_corpus
from curate.read.documents import Documents, offsets_from_lengths
from curate.read.tokenizer import TextTokenizer, train_tokenizer
from curate.select.methods import Context
from curate.select.schedule import Schedule
from curate.train.compute import Compute
from curate.train.model import LanguageModel, ModelShape, build_network
from curate.train.optimizer import StepRecord

VOCABULARY = 48
PREFIX = 3
SHAPE = ModelShape(
    window=8,
    longest_window=64,
    vocabulary_size=VOCABULARY,
    batch_tokens=64,
    learning_rate=1e-2,
    llama={"hidden": 16, "layers": 1, "heads": 2, "intermediate": 32},
)


@pytest.fixture(autouse=True)
def one_thread():
    """For test modules to import: threads that wait for each other cost all the time here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cpu(microbatch_tokens: int = 4096) -> Compute:
    return Compute(torch.device("cpu"), torch.float32, microbatch_tokens)


def make_model(
    seed: int = 0, *, window: int = 8, overlap: int = 3, microbatch_tokens: int = 4096
) -> LanguageModel:
    """A Llama of one layer and 48 words, its weights larger than usual so that tokens differ."""
    network = build_network(SHAPE, VOCABULARY, PREFIX, seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return wrap(network, window=window, overlap=overlap, microbatch_tokens=microbatch_tokens)


def wrap(
    network: torch.nn.Module, *, window: int = 8, overlap: int = 3, microbatch_tokens: int = 4096
) -> LanguageModel:
    compute = cpu(microbatch_tokens)
    return LanguageModel(network, window=window, overlap=overlap, prefix_id=PREFIX, compute=compute)


def make_documents(
    lengths: list[int], seed: int = 0, vocabulary: int = VOCABULARY, first_id: int = 0
) -> Documents:
    """Random tokens; ids count from `first_id`."""
    random = np.random.default_rng(seed)
    offsets = offsets_from_lengths(np.array(lengths, dtype=np.int64))
    return Documents(
        first_id + np.arange(len(lengths)),
        np.array(lengths, dtype=np.int64) * 4,
        offsets,
        random.integers(0, vocabulary, offsets[-1]).astype(np.uint16),
    )


def tokens_of(documents: Documents) -> list[list[int]]:
    """The tokens of each document."""
    return [
        documents.input_ids[first:last].tolist()
        for first, last in zip(documents.offsets[:-1], documents.offsets[1:], strict=True)
    ]


def plain_token_losses(
    network: Any, tokens: list[int], *, prefix: int = PREFIX, window: int = 8, overlap: int = 3
) -> list[torch.Tensor]:
    """The loss of each token of one document, by the definition, one unpadded window at a time."""
    sequence = [prefix, *tokens]
    losses: list[torch.Tensor] = []
    start = 0
    while len(losses) < len(tokens):
        stop = min(start + window, len(tokens))
        logits = network(input_ids=torch.tensor([sequence[start:stop]])).logits[0]
        predicted = logits.float().log_softmax(-1)
        for position in range(len(losses), stop):
            losses.append(-predicted[position - start, sequence[position + 1]])
        start = stop - overlap
    return losses


def weights_of(model: LanguageModel) -> list[torch.Tensor]:
    """Copies of a model's parameters."""
    return [parameter.detach().clone() for parameter in model.network.parameters()]


def same_weights(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    """Whether two lists of parameters are equal bit for bit (NaN equals itself)."""
    return all(
        torch.equal(a.view(torch.int32), b.view(torch.int32))
        for a, b in zip(ours, theirs, strict=True)
    )


HALVES = (string.ascii_lowercase[:13], string.ascii_lowercase[13:])
"""Two alphabets without a common letter: the two kinds of document of a planted pool."""


def planted_text(kind: int, number: int) -> str:
    """Words of random letters of one of the two alphabets; 12 to 60 letters."""
    random = np.random.default_rng([kind, number])
    letters = random.choice(list(HALVES[kind]), size=int(random.integers(12, 60)))
    return "".join(letters)


@dataclass
class Planted:
    """A pool whose even rows are of kind 0 and odd rows of kind 1, and a target of kind 0."""

    cache: TokenCache
    tokenizer: TextTokenizer
    target: Documents

    @staticmethod
    def kinds(documents: Documents) -> np.ndarray:
        """The kind of each pool document."""
        return documents.ids % 2

    def blocks(self, index: int = 0, tokens: int = 800) -> list[Documents]:
        """The blocks of a pass over the pool."""
        return list(draw_blocks(self.cache.stream(0, "pass", index), tokens))


def make_planted(folder: Path, rows: int = 160, *, seed: int = 0, partitions: int = 2) -> Planted:
    """Write the planted pool under `folder` and tokenize it; the seed is of the partitions."""
    folder.mkdir(exist_ok=True)
    texts = [planted_text(row % 2, row) for row in range(rows)]
    pq.write_table(pa.table({"text": texts}), folder / "pool.parquet")
    corpus = open_corpus(str(folder / "pool.parquet"))
    tokenizer = train_tokenizer(iter(texts), 257)
    fragments = tuple(
        write_fragments(
            corpus,
            corpus.shards[0],
            tokenizer,
            folder / "cache",
            metadata_columns=[],
            partitions=partitions,
            seed=seed,
        )
    )
    target = [planted_text(0, 10_000 + row) for row in range(25)]
    encoded = tokenizer.encode(target)
    return Planted(
        TokenCache(folder / "cache", fragments, partitions),
        tokenizer,
        Documents(
            np.arange(len(target)),
            np.array([len(one) for one in target]),
            offsets_from_lengths(np.array([len(one) for one in encoded])),
            np.concatenate(encoded),
        ),
    )


@dataclass
class Bench:
    """A context for a method, and everything the method told it."""

    context: Context
    models: list[LanguageModel] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @property
    def proxy(self) -> LanguageModel:
        """The model that the method trains in place."""
        return self.models[-1]


def make_bench(
    planted: Planted,
    *,
    keep: float = 0.3,
    seed: int = 0,
    granularity: str = "document",
    **blade: Any,
) -> Bench:
    """A context over the planted pool with a model of 2 layers and a window of 24."""
    batch_tokens = 240
    settings = {
        "warmup_tokens": 2400,
        "sync_every": 4,
        "reference_steps": 5,
        "passes": 1,
        "control": "lookahead",
    }
    config = Config(
        pool="pool",
        target="target",
        out="out",
        keep=keep,
        seed=seed,
        granularity=granularity,
        model=ModelConfig(window=24, window_overlap=4, vocabulary_size=257),
        train=TrainConfig(batch_tokens=batch_tokens, learning_rate=5e-3, ramp_steps=3),
        blade=BladeConfig(**{**settings, **blade}),
    )
    shape = ModelShape(
        window=24,
        longest_window=64,
        vocabulary_size=257,
        batch_tokens=batch_tokens,
        learning_rate=5e-3,
        llama={"hidden": 32, "layers": 2, "heads": 2, "intermediate": 64},
    )

    def build() -> LanguageModel:
        prefix = planted.tokenizer.prefix_id
        network = build_network(shape, planted.tokenizer.vocabulary_size, prefix, seed)
        bench.models.append(
            LanguageModel(network, window=24, overlap=4, prefix_id=prefix, compute=cpu())
        )
        return bench.proxy

    steps: list[StepRecord] = []
    tokens: list[int] = []
    context = Context(
        config=config,
        schedule=Schedule(rounds_per_pass=3, blocks_per_round=4, block_tokens=800),
        cache=planted.cache,
        target=planted.target,
        make_model=build,
        decode=planted.tokenizer.decode,
        on_step=steps.append,
        on_tokens=tokens.append,
    )
    bench = Bench(context, steps=steps, tokens=tokens)
    return bench
