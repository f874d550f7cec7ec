"""Losses of tokens and of whole documents, whatever batch they were in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from curate.clock import MODEL, doing
from curate.read.documents import Documents
from curate.read.windows import (
    Batch,
    Windows,
    rolling_windows,
    sample_pieces,
    sampled_windows,
)
from curate.train.model import LanguageModel

Float64 = npt.NDArray[np.float64]


def document_losses(model: LanguageModel, documents: Documents, most: int | None = None) -> Float64:
    """Mean next-token loss of each document, float64 [N], nats per token.

    Every token is predicted exactly once, the first from the separator; documents longer than the
    model's window roll through it (`read.windows`). Documents without tokens get NaN.

    Args:
        model: the network and its window.
        documents: N documents.
        most: tokens predicted of a document; longer ones are sampled. None for all.
    """
    return losses_by_model([model], documents, most)[0]


@doing(MODEL)
@torch.no_grad()
def losses_by_model(
    models: Sequence[LanguageModel], documents: Documents, most: int | None = None
) -> list[Float64]:
    """`document_losses` of models that differ in their weights alone, which share batches.

    Batches are then made once, and a device is waited for once.
    """
    first = models[0]
    windows = _windows(first, documents, most)
    device = first.compute.device
    summed = torch.zeros(len(models), len(documents), dtype=torch.float64, device=device)
    for batch in first.batches(documents, windows, first.microbatch_tokens):
        document = first.compute.send(windows.document[batch.windows])
        each = first.compute.send(batch.counts)
        for model, sums in zip(models, summed, strict=True):
            losses = model.token_losses(batch).double()
            per_window = torch.segment_reduce(losses, "sum", lengths=each, unsafe=True)
            sums.index_add_(0, document, per_window)
    counts = np.bincount(windows.document, windows.stop - windows.scored, minlength=len(documents))
    found = summed.cpu().numpy()  # the one place that waits for the device
    return [_per_token(sums, counts) for sums in found]


def tokens_read(
    model: LanguageModel, documents: Documents, most: int | None
) -> npt.NDArray[np.int64]:
    """Tokens of each document that `document_losses` predicts, int64 [N]."""
    if most is None:
        return documents.lengths
    pieces, size = sample_pieces(model.window, most)
    return np.where(documents.lengths > most, pieces * size, documents.lengths)


@doing(MODEL)
def token_losses(model: LanguageModel, documents: Documents) -> torch.Tensor:
    """Next-token loss of each token, float32 [tokens], nats, in the documents' order.

    The loss of a token is that of predicting it. Differentiable where the model is: the graphs of
    all microbatches are held until the result is let go.
    """
    windows = rolling_windows(documents.lengths, model.window, model.overlap)
    losses, places = [torch.zeros(0, device=model.compute.device)], [np.zeros(0, dtype=np.int64)]
    learns = torch.is_grad_enabled()
    size = model.training_microbatch_tokens if learns else model.microbatch_tokens
    for batch in model.batches(documents, windows, size):
        losses.append(model.token_losses(batch))
        places.append(_token_places(batch, windows, documents))
    order = np.argsort(np.concatenate(places))
    return torch.cat(losses)[model.compute.send(order)]


def mean_by_document(token_values: Float64, documents: Documents) -> Float64:
    """Mean of a value per token over each document, float64 [N]; NaN without tokens."""
    ends = np.concatenate([[0.0], np.cumsum(token_values, dtype=np.float64)])
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        return _per_token(np.diff(ends[documents.offsets]), documents.lengths)


def mean_loss(model: LanguageModel, documents: Documents) -> float:
    """Mean next-token loss over all tokens of the documents, nats per token."""
    losses = document_losses(model, documents)
    return float(np.average(losses, weights=documents.lengths))


def _token_places(batch: Batch, windows: Windows, documents: Documents) -> npt.NDArray[np.int64]:
    """Positions among all tokens of those that a batch predicts, in the order of its losses."""
    rows = batch.windows
    base = documents.offsets[windows.document[rows]]
    counts = windows.stop[rows] - windows.scored[rows]
    starts = base + windows.scored[rows] - (np.cumsum(counts) - counts)
    return np.repeat(starts, counts) + np.arange(counts.sum())


def _windows(model: LanguageModel, documents: Documents, most: int | None) -> Windows:
    if most is None:
        return rolling_windows(documents.lengths, model.window, model.overlap)
    return sampled_windows(documents.lengths, model.window, model.overlap, most)


def _per_token(summed: Float64, counts: npt.NDArray[np.number]) -> Float64:
    with np.errstate(invalid="ignore"):
        return summed / np.where(counts > 0, counts, np.nan)
