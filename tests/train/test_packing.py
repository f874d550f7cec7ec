"""Windows packed into one row, as a GPU gets them, with the attention of other devices."""

import warnings

import numpy as np
import pytest
import torch
from tiny_models import make_documents, make_model, one_thread  # noqa: F401

from curate.config.schema import TrainConfig
from curate.read.windows import rolling_windows
from curate.score.loss import document_losses, losses_by_model, token_losses
from curate.train import fuse
from curate.train import model as model_module
from curate.train.attention import causal_attention, packed_attention
from curate.train.compute import Compute
from curate.train.optimizer import Optimizer, Term

DOCUMENTS = make_documents([31, 1, 8, 0, 9, 60, 14, 3] * 3, seed=4)


@pytest.fixture
def packing(monkeypatch):
    monkeypatch.setattr(model_module, "_can_pack", lambda network, compute: True)
    monkeypatch.setattr(model_module, "fuse_layers", lambda network: False)


@pytest.fixture
def in_rows():
    return make_model(microbatch_tokens=64)


@pytest.fixture
def packed(in_rows, packing):
    return make_model(microbatch_tokens=64)


def test_attention_stays_within_windows():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(9, 2, 4, generator=generator) for _ in range(3))
    starts = torch.tensor([0, 4, 5, 9], dtype=torch.int32)
    found = packed_attention(query, key, value, starts, longest=8, scale=0.6)
    for first, end in ((0, 4), (4, 5), (5, 9)):
        own = (one[first:end].transpose(0, 1) for one in (query, key, value))
        expected = causal_attention(*own, 0.6).transpose(0, 1)
        torch.testing.assert_close(found[first:end], expected)


def test_losses_are_those_of_rows(in_rows, packed):
    windows = rolling_windows(DOCUMENTS.lengths, 8, 3)
    assert all(batch.starts is not None for batch in packed.batches(DOCUMENTS, windows, 64))
    assert all(batch.starts is None for batch in in_rows.batches(DOCUMENTS, windows, 64))
    expected, found = (document_losses(model, DOCUMENTS) for model in (in_rows, packed))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    expected, found = (document_losses(model, DOCUMENTS, 8) for model in (in_rows, packed))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with torch.no_grad():
        expected, found = (token_losses(model, DOCUMENTS) for model in (in_rows, packed))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_steps_are_those_of_rows(in_rows, packed):
    counted = np.arange(DOCUMENTS.num_tokens) % 3 > 0
    terms = [Term(DOCUMENTS.masked(counted), 0.7), Term(make_documents([20, 9], seed=1))]
    records = [
        Optimizer(model, "proxy", TrainConfig(), lambda step: 1e-2).step(terms)
        for model in (in_rows, packed)
    ]
    assert records[1].loss == pytest.approx(records[0].loss, rel=1e-5)
    assert records[1].gradient_norm == pytest.approx(records[0].gradient_norm, rel=1e-4)


def test_models_that_share_batches_have_the_losses_they_have_alone():
    models = [make_model(seed, microbatch_tokens=64) for seed in range(3)]
    found = losses_by_model(models, DOCUMENTS, 8)
    for losses, model in zip(found, models, strict=True):
        np.testing.assert_array_equal(losses, document_losses(model, DOCUMENTS, 8))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs that nothing can be compiled")
def test_without_a_compiler_layers_stay_as_they_are(monkeypatch):
    monkeypatch.delenv("TORCH_COMPILE_DISABLE", raising=False)
    fuse.can_fuse.cache_clear()
    network = make_model().network
    with pytest.warns(UserWarning, match="cannot compile for this GPU.*Install Triton"):
        assert not fuse.fuse_layers(network)
    assert not any(part._compiled_call_impl for part in network.modules())
    for switch in ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"):
        fuse.can_fuse.cache_clear()
        with monkeypatch.context() as patch, warnings.catch_warnings(action="error"):
            patch.setenv(switch, "1")
            assert not fuse.can_fuse()
    fuse.can_fuse.cache_clear()


@pytest.mark.parametrize(
    ("device", "dtype", "attention", "capability", "packs"),
    [
        ("cuda", torch.bfloat16, "curate_blocked", (9, 0), True),
        ("cuda", torch.bfloat16, "curate_blocked", (7, 5), False),
        ("cuda", torch.bfloat16, "sdpa", (9, 0), False),
        ("cuda", torch.float32, "curate_blocked", (9, 0), False),
        ("cpu", torch.bfloat16, "curate_blocked", (9, 0), False),
    ],
)
def test_windows_are_packed_where_a_kernel_keeps_them_apart(
    device, dtype, attention, capability, packs, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    network = make_model().network
    network.config._attn_implementation = attention
    assert model_module._can_pack(network, Compute(torch.device(device), dtype, 64)) == packs
