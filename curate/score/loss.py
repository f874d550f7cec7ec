"""Losses of whole documents under a frozen model, whatever batch they were in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from curate.read.documents import Documents
from curate.read.windows import make_batches, rolling_windows
from curate.train.model import LanguageModel


@torch.no_grad()
def document_losses(model: LanguageModel, documents: Documents) -> npt.NDArray[np.float64]:
    """Mean next-token loss of each document, float64 [N], nats per token.

    Every token is predicted exactly once, the first from the separator; documents longer than the
    model's window roll through it (`read.windows`). Documents without tokens get NaN.
    """
    windows = rolling_windows(documents.lengths, model.window, model.overlap)
    summed = np.zeros(len(documents))
    for batch in make_batches(
        documents,
        windows,
        prefix_id=model.prefix_id,
        microbatch_tokens=model.compute.microbatch_tokens,
    ):
        losses, rows = model.token_losses(batch)
        per_row = torch.zeros(len(batch.windows), dtype=torch.float64, device=losses.device)
        per_row.index_add_(0, rows, losses.double())
        np.add.at(summed, windows.document[batch.windows], per_row.cpu().numpy())
    with np.errstate(invalid="ignore"):
        return summed / np.where(documents.lengths > 0, documents.lengths, np.nan)


def mean_loss(model: LanguageModel, documents: Documents) -> float:
    """Mean next-token loss over all tokens of the documents, nats per token."""
    losses = document_losses(model, documents)
    return float(np.average(losses, weights=documents.lengths))
