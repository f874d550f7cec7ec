"""FlashAttention 4 as one operation, with stand-ins for its kernels that compute the definition."""

import contextlib
import functools
import itertools
import types
import warnings

import numpy as np
import pytest
import torch
from tiny_models import make_documents, make_model, one_thread  # noqa: F401

from curate.config.schema import TrainConfig
from curate.read.windows import rolling_windows
from curate.score.loss import document_losses
from curate.train import flash, fuse
from curate.train import model as model_module
from curate.train.attention import packed_attention
from curate.train.flash import flash_attention, has_flash_attention
from curate.train.optimizer import Optimizer, Term

DOCUMENTS = make_documents([31, 1, 8, 0, 9, 60, 14, 3] * 3, seed=4)
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def shares(query, key, scale):
    scores = torch.einsum("ihd,jhd->hij", query, key) * scale
    future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(dim=-1)


def windows(starts, *tensors):
    for first, end in itertools.pairwise(starts.tolist()):
        yield [one[first:end].double() for one in tensors]


def forward(query, key, value, *, cu_seqlens_q, softmax_scale, causal, return_lse, **others):
    assert causal
    assert return_lse
    assert all(one.is_contiguous() for one in (query, key, value))
    found = [
        torch.einsum("hij,jhd->ihd", shares(q, k, softmax_scale), v)
        for q, k, v in windows(cu_seqlens_q, query, key, value)
    ]
    sums = torch.zeros(query.shape[1], query.shape[0])
    return torch.cat(found).to(query.dtype), sums, None, None, None


def backward(
    query, key, value, output, gradient, sums, *, cu_seqlens_q, softmax_scale, causal, **others
):
    assert causal
    assert gradient.is_contiguous()
    gradients = []
    for q, k, v, o, g in windows(cu_seqlens_q, query, key, value, output, gradient):
        share = shares(q, k, softmax_scale)
        errors = torch.einsum("ihd,jhd->hij", g, v) - (g * o).sum(-1).T[:, :, None]
        errors *= share * softmax_scale
        gradients.append(
            (
                torch.einsum("hij,jhd->ihd", errors, k),
                torch.einsum("hij,ihd->jhd", errors, q),
                torch.einsum("hij,ihd->jhd", share, g),
            )
        )
    return tuple(torch.cat(one).to(query.dtype) for one in zip(*gradients, strict=True))


@pytest.fixture
def stand_ins(monkeypatch):
    kernels = types.SimpleNamespace(_flash_attn_fwd=forward, _flash_attn_bwd=backward)
    monkeypatch.setattr(flash, "_kernels", lambda: kernels)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    has_flash_attention.cache_clear()
    yield kernels
    has_flash_attention.cache_clear()


@pytest.fixture
def installed(monkeypatch, stand_ins):
    monkeypatch.setattr(flash, "version", lambda name: "4.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(flash, "_try", functools.partial(on_cpu, flash._try))
    return stand_ins


def on_cpu(trial, attention, device):
    assert device == GPU
    trial(attention, CPU)


def test_models_compute_by_it_what_they_compute_without_in_whole_graphs(stand_ins, monkeypatch):
    without = make_model(microbatch_tokens=64)
    monkeypatch.setattr(model_module, "_can_pack", lambda network, compute: True)
    monkeypatch.setattr(model_module, "has_flash_attention", lambda device: True)
    monkeypatch.setattr(model_module, "_FLASH_FROM", 5)
    monkeypatch.setattr(fuse, "can_fuse", lambda: True)
    compile_module = functools.partialmethod(
        torch.nn.Module.compile, backend="aot_eager", fullgraph=True
    )
    monkeypatch.setattr(torch.nn.Module, "compile", compile_module)
    torch.compiler.reset()
    by_it = make_model(microbatch_tokens=64)
    for lengths, attention in (([3, 4], packed_attention), ([4, 5], flash_attention)):
        documents = make_documents(lengths, seed=1)
        (batch,) = by_it.batches(documents, rolling_windows(documents.lengths, 8, 3), 64)
        assert by_it._inputs(batch)["packed_attention"] is attention
    np.testing.assert_allclose(
        document_losses(by_it.frozen_copy(), DOCUMENTS),
        document_losses(without, DOCUMENTS),
        atol=1e-5,
    )
    expected, found = (
        Optimizer(model, "proxy", TrainConfig(), lambda step: 1e-2).step([Term(DOCUMENTS)])
        for model in (without, by_it)
    )
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-4)
    torch.compiler.reset()


def test_it_is_used_where_it_gives_what_the_definition_does(installed):
    with warnings.catch_warnings(action="error"):
        assert has_flash_attention(GPU)


@pytest.mark.parametrize("capability", [(8, 0), (12, 0)])
def test_it_is_not_tried_on_other_devices(capability, installed, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with warnings.catch_warnings(action="error"):
        assert not has_flash_attention(GPU)
        assert not has_flash_attention(CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it may be installed beside a GPU")
def test_without_the_package_nothing_is_said():
    has_flash_attention.cache_clear()
    with warnings.catch_warnings(action="error"):
        assert not has_flash_attention(GPU)


def off_by_a_tenth(kernel, *arguments, **others):
    return tuple(None if one is None else 1.1 * one for one in kernel(*arguments, **others))


def refuse(*arguments, **others):
    raise TypeError("unexpected keyword argument\nand more of it")


@pytest.mark.parametrize(
    ("name", "broken", "reason"),
    [
        ("_flash_attn_fwd", functools.partial(off_by_a_tenth, forward), "its results are wrong"),
        ("_flash_attn_bwd", functools.partial(off_by_a_tenth, backward), "its results are wrong"),
        ("_flash_attn_bwd", refuse, "unexpected keyword argument"),
    ],
)
def test_kernels_that_do_not_work_are_done_without(name, broken, reason, installed):
    setattr(installed, name, broken)
    with pytest.warns(UserWarning) as caught:
        assert not has_flash_attention(GPU)
    assert [str(one.message) for one in caught] == [
        "flash-attn-4 4.0 does not work here, and attention takes up to twice as long "
        f"({reason}). Run: pip install 'curate[gpu]', or remove flash-attn-4."
    ]
    with warnings.catch_warnings(action="error"):
        assert not has_flash_attention(GPU)  # which is said once
