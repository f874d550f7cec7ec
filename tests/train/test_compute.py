"""Where models run, as far as a machine without a GPU can tell, and what memory they leave."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from curate.config.schema import ComputeConfig
from curate.errors import InvalidInput
from curate.train import compute as module
from curate.train.compute import resolve_compute

GIB = 2**30


def on_a_gpu(monkeypatch, memory, given=None):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(module, "_failure_on", lambda device: None)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=memory)
    )
    return resolve_compute(ComputeConfig(device="cuda:0", dtype="float32", microbatch_tokens=given))


@pytest.mark.parametrize(
    ("memory", "width", "kind", "expected"),
    [
        (80 * GIB, 12 * 768, "fused", (65536, 65536)),
        (24 * GIB, 12 * 768, "fused", (65536, 32768)),
        (24 * GIB, 12 * 768, "plain", (16384, 8192)),
        (24 * GIB, 22 * 2048, "fused", (8192, 4096)),
        (80 * GIB, 22 * 2048, "fused", (32768, 16384)),
        (GIB, 80 * 8192, "plain", (1024, 512)),
    ],
)
def test_a_gpu_gets_batches_whose_activations_fit(memory, width, kind, expected, monkeypatch):
    compute = on_a_gpu(monkeypatch, memory)
    assert compute.tokens_for(width, kind, 0) == expected


def test_a_gpu_that_weights_fill_gets_smaller_batches(monkeypatch):
    """Ten times the weights, as many copies as there are in a sync, are left for them."""
    compute = on_a_gpu(monkeypatch, 24 * GIB)
    model = (24 * 896, "plain")
    assert compute.tokens_for(*model, 0) == (8192, 4096)
    assert compute.tokens_for(*model, GIB) == (8192, 4096)
    assert compute.tokens_for(*model, 1_980_000_000) == (4096, 2048)
    assert compute.tokens_for(*model, 3 * GIB) == (1024, 512)
    assert compute.held_tokens(*model, GIB) == int(0.4 * 24 * GIB / (96 * 24 * 896))
    assert compute.held_tokens(*model, 3 * GIB) == 1


def test_activations_are_held_without_a_bound_on_a_cpu_alone(monkeypatch):
    assert resolve_compute(ComputeConfig(device="cpu")).held_tokens(9216, "plain", 0) is None
    given = ComputeConfig(device="cpu", microbatch_tokens=100)
    assert resolve_compute(given).held_tokens(9216, "plain", 0) == 50


def test_a_gpu_is_tried_before_it_is_taken(monkeypatch):
    """A build of PyTorch may lack its kernels, and somebody else may have filled it."""
    taken = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(module, "_failure_on", lambda device: "no kernel image is available")
    with pytest.warns(UserWarning, match="no kernel image is available.*run on the CPU"):
        assert resolve_compute(ComputeConfig()).device == torch.device("cpu")
    with pytest.raises(InvalidInput) as caught:
        resolve_compute(ComputeConfig(device="cuda:1"))
    assert caught.value.problem == (
        "The device cuda:1 cannot be used (no kernel image is available)."
    )
    assert taken == []
    monkeypatch.setattr(module, "_failure_on", lambda device: None)
    resolve_compute(ComputeConfig(device="cuda:1", dtype="float32"))
    assert taken == [torch.device("cuda:1")]


def test_a_numbered_cpu_is_the_cpu():
    assert resolve_compute(ComputeConfig(device="cpu:0")).device.type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs that there is no GPU")
def test_a_device_that_fails_says_why():
    assert module._failure_on(torch.device("cuda"))
    assert module._failure_on(torch.device("cpu")) is None


@pytest.mark.parametrize("given", [100, 1 << 20])
def test_batches_are_of_the_size_that_is_asked_for(given, monkeypatch):
    config = ComputeConfig(device="cpu", microbatch_tokens=given)
    assert resolve_compute(config).tokens_for(9216, "plain", 0) == (given, given // 2)
    assert on_a_gpu(monkeypatch, GIB, given).tokens_for(9216, "fused", 0) == (given, given // 2)


def test_a_cpu_gets_small_batches():
    compute = resolve_compute(ComputeConfig(device="cpu"))
    assert compute.tokens_for(9216, "plain", 0) == (4096, 2048)


def test_what_is_sent_to_a_cpu_is_not_copied():
    array = np.arange(3)
    compute = resolve_compute(ComputeConfig(device="cpu"))
    assert compute.send(array).data_ptr() == array.ctypes.data


HOLES = """
import os
from pathlib import Path
import numpy as np
from curate.train.compute import FreedMemory, tune_memory

def megabytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20

def fill(count):
    buffers = [np.ones(2**17) for _ in range(count)]
    return buffers[-1]

tune_memory()
memory = FreedMemory()
start = megabytes()
last = fill(int(GROWTH * start))
grown = megabytes() - start
memory.when_grown()
print(grown, megabytes() - start)
"""
"""Buffers of a MiB, of which the last lives on, so that those before it are a hole."""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
@pytest.mark.parametrize(("growth", "returned"), [(0.1, False), (0.5, True)])
def test_freed_memory_is_given_back_once_the_process_has_grown(growth, returned):
    script = HOLES.replace("GROWTH", str(growth))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    grown, left = map(int, done.stdout.split())
    assert grown > 0
    assert (left < grown / 4) == returned
