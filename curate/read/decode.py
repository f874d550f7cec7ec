"""Token ids back to text."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import tokenizers

from curate.read.documents import Int64


def decode_tokens(
    backend: tokenizers.Tokenizer, offsets: Int64, input_ids: npt.NDArray[np.integer]
) -> list[str]:
    """The text of each document; exact for byte-level tokenizers.

    Args:
        backend: what the texts were tokenized by.
        offsets: document i is input_ids[offsets[i]:offsets[i + 1]], int64 [N + 1].
        input_ids: token ids, integers [offsets[-1]].
    """
    if len(offsets) == 1:
        return []
    pieces = [one.tolist() for one in np.split(input_ids, offsets[1:-1])]
    texts: list[str] = backend.decode_batch(pieces, skip_special_tokens=False)
    return texts
