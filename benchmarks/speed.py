"""How fast are scoring and training, beside a plain loop and beside the matrix products alone?

The plain loop is what a careful user writes first: a transformers model in float32, documents in
file order, padded to the longest of a batch, cross entropy over all logits, AdamW. The product's
own functions see the same documents, cut to the model's window, and do the same work: the losses
must agree. The roofline is the product's matrix products of one forward at the same shapes and
dtype, timed alone. All are timed in turn in one process; ratios are medians over the repeats.

    python benchmarks/speed.py --pool POOL --model tiny
    python benchmarks/speed.py --pool POOL --model small --parts scoring   # the rest takes 24 GB

POOL is a folder of shards with a column text. Writes benchmarks/results/speed-MODEL-DEVICE.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from machine import code_version, describe_machine
from torch import Tensor, nn

from curate.config.schema import ComputeConfig, TrainConfig
from curate.noise import make_key, shuffled_order
from curate.read.documents import Documents, from_tokens
from curate.read.tokenizer import train_tokenizer
from curate.read.windows import make_batches, rolling_windows
from curate.score.loss import document_losses
from curate.train.compute import Compute, resolve_compute, tune_memory
from curate.train.model import PRESETS, LanguageModel, build_network
from curate.train.optimizer import Optimizer, Term

RESULTS = Path(__file__).parent / "results"
BATCH_DOCUMENTS = 16
PARTS = ("scoring", "training")
TOKENIZER_TEXTS = 3000
QUERY_BLOCK = 128
"""Queries that the product multiplies at a time on a CPU (curate/train/attention.py)."""


def read_documents(pool: Path, model: str, tokens: int) -> tuple[Documents, int, int]:
    """Documents of the pool in file order, each cut to the window, the vocabulary and separator."""
    shape = PRESETS[model]
    texts: list[str] = []
    for shard in sorted(pool.glob("*.parquet")):
        texts.extend(text for text in pq.read_table(shard)["text"].to_pylist() if text)
        if sum(map(len, texts)) > 8 * tokens:
            break
    order = shuffled_order(make_key(0, "tokenizer"), range(len(texts)))[:TOKENIZER_TEXTS]
    tokenizer = train_tokenizer((texts[i] for i in order), int(shape.vocabulary_size or 0))
    encoded, held = [], 0
    for ids in itertools.chain.from_iterable(
        tokenizer.encode(texts[i : i + 64]) for i in range(0, len(texts), 64)
    ):
        if held >= tokens:
            break
        encoded.append(ids[: shape.window])
        held += len(encoded[-1])
    documents = from_tokens(range(len(encoded)), [len(one) for one in encoded], encoded)
    return documents, tokenizer.vocabulary_size, tokenizer.prefix_id


def sequences(documents: Documents, prefix_id: int) -> list[Tensor]:
    """The token ids of each document with the separator in front, as the plain loop has them."""
    texts = np.split(documents.input_ids.astype(np.int64), documents.offsets[1:-1])
    return [torch.from_numpy(np.concatenate([[prefix_id], one])) for one in texts]


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, attention mask and labels, each [B, L]."""
    inputs = nn.utils.rnn.pad_sequence([row[:-1] for row in rows], batch_first=True)
    labels = nn.utils.rnn.pad_sequence(
        [row[1:] for row in rows], batch_first=True, padding_value=-100
    )
    return inputs, (labels != -100).long(), labels


def plain_losses(network: Any, texts: list[Tensor]) -> list[float]:
    """The plain loop that scores: mean loss of each document."""
    found = []
    with torch.no_grad():
        for first in range(0, len(texts), BATCH_DOCUMENTS):
            rows = texts[first : first + BATCH_DOCUMENTS]
            inputs, mask, labels = (one.to(network.device) for one in padded(rows))
            logits = network(input_ids=inputs, attention_mask=mask).logits
            losses = nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), reduction="none"
            ).view(labels.shape)
            found.extend((losses.sum(1) / mask.sum(1)).tolist())
    return found


def plain_training(
    network: Any, batches: list[list[Tensor]], rate: Callable[[int], float]
) -> list[float]:
    """The plain loop that trains, at the product's rate; returns the loss of each step."""
    adamw = torch.optim.AdamW(network.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.1)
    found = []
    for step, rows in enumerate(batches):
        inputs, mask, labels = (one.to(network.device) for one in padded(rows))
        logits = network(input_ids=inputs, attention_mask=mask).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adamw.param_groups[0]["lr"] = rate(step)
        adamw.step()
        adamw.zero_grad()
        found.append(float(loss.detach()))
    return found


def step_batches(documents: Documents, tokens: int) -> list[np.ndarray[Any, Any]]:
    """Documents in file order, cut into steps of about so many tokens."""
    steps = (documents.offsets[1:] - 1) // tokens
    return [np.flatnonzero(steps == step) for step in np.unique(steps)]


def forward_products(
    model: LanguageModel, documents: Documents
) -> list[tuple[Callable[..., Tensor], Tensor, Tensor]]:
    """The matrix products of scoring the documents once: (function, first, second factor)."""
    config: Any = model.network.config
    dtype, device = model.compute.dtype, model.compute.device
    hidden, heads, wide = (
        config.hidden_size, config.num_attention_heads, config.intermediate_size,
    )  # fmt: skip
    weights = {
        shape: torch.randn(shape, dtype=dtype, device=device)
        for shape in ((hidden, hidden), (wide, hidden), (hidden, wide), (config.vocab_size, hidden))
    }
    made: dict[tuple[int, ...], Tensor] = {}

    def activations(*shape: int) -> Tensor:
        if shape not in made:
            made[shape] = torch.randn(shape, dtype=dtype, device=device)
        return made[shape]

    products: list[tuple[Callable[..., Tensor], Tensor, Tensor]] = []
    attention_rows = QUERY_BLOCK if device.type == "cpu" else model.window
    linear = nn.functional.linear
    windows = rolling_windows(documents.lengths, model.window, model.overlap)
    batches = make_batches(
        documents, windows, prefix_id=model.prefix_id,
        microbatch_tokens=model.microbatch_tokens,
    )  # fmt: skip
    for batch in batches:
        rows, length = batch.inputs.shape
        flat, size = activations(rows * length, hidden), hidden // heads
        query, blocks = activations(rows * heads, length, size), []
        for first in range(0, length, attention_rows):  # causal: keys up to a block's end alone
            end = min(first + attention_rows, length)
            scores = activations(rows * heads, end - first, end)
            blocks += [
                (torch.bmm, query[:, first:end], query[:, :end].transpose(1, 2)),
                (torch.bmm, scores, query[:, :end]),
            ]
        for _ in range(config.num_hidden_layers):
            products += [(linear, flat, weights[hidden, hidden])] * 4
            products += blocks
            products += [(linear, flat, weights[wide, hidden])] * 2
            products += [(linear, activations(rows * length, wide), weights[hidden, wide])]
        counted = int((batch.labels != -100).sum())
        products += [(linear, activations(counted, hidden), weights[config.vocab_size, hidden])]
    return products


@torch.no_grad()
def multiply(products: list[tuple[Callable[..., Tensor], Tensor, Tensor]]) -> None:
    """Make every product once."""
    for function, first, second in products:
        function(first, second)


def seconds(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    """How long some work takes, and what it returns."""
    started = time.perf_counter()
    result = work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def repeat(
    contenders: dict[str, Callable[[], Any]], times: int, device: str
) -> Iterator[dict[str, tuple[float, Any]]]:
    """Time all contenders in turn, as often as asked, after one round that does not count."""
    for number in range(times + 1):
        row = {name: seconds(work, device) for name, work in contenders.items()}
        if number:
            yield row


def main() -> None:
    """Time scoring and training, and write the ratios down."""
    parser = argparse.ArgumentParser(description="Time scoring and training.")
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--model", default="tiny", choices=list(PRESETS))
    parser.add_argument("--score-tokens", type=int, default=200_000)
    parser.add_argument("--train-tokens", type=int, default=150_000)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    tune_memory()
    shape, device = PRESETS[options.model], options.device
    compute = resolve_compute(ComputeConfig(device=device))
    most = max(options.score_tokens, options.train_tokens)
    documents, vocabulary, prefix = read_documents(options.pool, options.model, most)

    def network() -> Any:
        return build_network(shape, vocabulary, prefix, seed=0).to(device)

    def product(where: Compute) -> LanguageModel:
        return LanguageModel(
            network(), window=shape.window, overlap=shape.window // 8, prefix_id=prefix,
            compute=where,
        )  # fmt: skip

    found: dict[str, Any] = {}
    if "scoring" in options.parts:
        found["scoring"] = score(options, documents, network(), product(compute), prefix)
    if "training" in options.parts:
        found["training"] = train(options, documents, network, lambda: product(compute), prefix)
    result = {
        **describe_machine("torch", "transformers"),
        "code": code_version(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "model": options.model,
        "dtype": str(compute.dtype).removeprefix("torch."),
        "repeats": options.repeats,
        **found,
    }
    name = f"speed-{options.model}-{'cuda' if device.startswith('cuda') else 'cpu'}.json"
    (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def score(
    options: argparse.Namespace, documents: Documents, network: Any, model: LanguageModel,
    prefix: int,
) -> dict[str, Any]:  # fmt: skip
    """Scoring: the plain loop, the product and the products alone."""
    documents = documents.take(np.flatnonzero(documents.offsets[1:] <= options.score_tokens))
    frozen, products = model.frozen_copy(), forward_products(model, documents)
    texts = sequences(documents, prefix)
    contenders: dict[str, Callable[[], Any]] = {
        "plain": lambda: plain_losses(network, texts),
        "curate": lambda: document_losses(frozen, documents),
        "products": lambda: multiply(products),
    }
    rows = list(repeat(contenders, options.repeats, options.device))
    ours, theirs = np.array(rows[-1]["curate"][1]), np.array(rows[-1]["plain"][1])
    return {
        "tokens": documents.num_tokens,
        "documents": len(documents),
        **median_speeds(rows, documents.num_tokens),
        "times_plain": ratio(rows, "plain", "curate"),
        "of_roofline": ratio(rows, "products", "curate"),
        "largest_loss_difference": float(np.abs(ours - theirs).max()),
        "mean_loss_difference": float(np.abs(ours - theirs).mean()),
        "mean_loss": float(theirs.mean()),
    }


def train(
    options: argparse.Namespace, documents: Documents, network: Callable[[], Any],
    model: Callable[[], LanguageModel], prefix: int,
) -> dict[str, Any]:  # fmt: skip
    """Training: the plain loop and the product, from the same weights on the same steps."""
    shape = PRESETS[options.model]
    documents = documents.take(np.flatnonzero(documents.offsets[1:] <= options.train_tokens))
    batches = step_batches(documents, shape.batch_tokens)
    texts = sequences(documents, prefix)
    plain_batches = [[texts[place] for place in places] for places in batches]
    ramp = max(1, len(batches) // 10)

    def rate(step: int) -> float:
        return shape.learning_rate * min(1.0, (step + 1) / ramp)

    def ours() -> list[float]:
        optimizer = Optimizer(model(), "proxy", TrainConfig(), rate)
        return [optimizer.step([Term(documents.take(places))]).loss for places in batches]

    contenders: dict[str, Callable[[], Any]] = {
        "plain": lambda: plain_training(network(), plain_batches, rate),
        "curate": ours,
    }
    rows = list(repeat(contenders, options.repeats, options.device))
    last = max(1, len(batches) // 5)
    return {
        "tokens": documents.num_tokens,
        "steps": len(batches),
        **median_speeds(rows, documents.num_tokens),
        "times_plain": ratio(rows, "plain", "curate"),
        "loss_of_last_fifth": {
            name: statistics.fmean(rows[-1][name][1][-last:]) for name in ("plain", "curate")
        },
    }


def median_speeds(rows: list[dict[str, tuple[float, Any]]], tokens: int) -> dict[str, float]:
    """Tokens per second of each contender."""
    return {
        f"{name}_tokens_per_second": round(tokens / statistics.median(row[name][0] for row in rows))
        for name in rows[0]
    }


def ratio(rows: list[dict[str, tuple[float, Any]]], over: str, under: str) -> float:
    """Median over the repeats of one time by another."""
    return round(statistics.median(row[over][0] / row[under][0] for row in rows), 3)


if __name__ == "__main__":
    main()
