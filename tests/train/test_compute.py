"""Where models run, as far as a machine without a GPU can tell."""

import numpy as np
import pytest
import torch

from curate.config.schema import ComputeConfig
from curate.train.compute import resolve_compute


@pytest.mark.parametrize(
    ("device", "given", "expected"),
    [("cpu", None, 4096), ("cuda:0", None, 16384), ("cpu", 100, 100), ("cuda:0", 100, 100)],
)
def test_batches_are_larger_on_a_gpu_unless_their_size_is_given(
    device, given, expected, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = ComputeConfig(device=device, dtype="float32", microbatch_tokens=given)
    assert resolve_compute(config).microbatch_tokens == expected


def test_what_is_sent_to_a_cpu_is_not_copied():
    array = np.arange(3)
    compute = resolve_compute(ComputeConfig(device="cpu"))
    assert compute.send(array).data_ptr() == array.ctypes.data
