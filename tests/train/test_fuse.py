"""Layers compiled as for a GPU, as far as a machine without one can tell: by what is traced."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from tiny_models import PREFIX, SHAPE, VOCABULARY, make_documents, one_thread, wrap  # noqa: F401
from torch._dynamo.utils import counters

from curate.score.loss import document_losses
from curate.train import fuse
from curate.train import model as model_module
from curate.train.attention import packed_attention
from curate.train.model import build_network

DEEPER = dataclasses.replace(SHAPE, llama={**(SHAPE.llama or {}), "layers": 3})


@torch.library.custom_op("curate_tests::attend", mutates_args=())
def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scale: float,
) -> torch.Tensor:
    """One operation, as a GPU's attention is."""
    return packed_attention(query, key, value, starts, longest=longest, scale=scale).clone()


@attend.register_fake
def _(query, key, value, starts, longest, scale):
    return torch.empty_like(query)


def attend_packed(query, key, value, starts, *, longest, scale):
    return attend(query, key, value, starts, longest, scale)


@pytest.fixture
def traced(monkeypatch):
    """Counts graphs; whatever is not one whole graph is an error."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        functools.partialmethod(compile_module, backend="eager", fullgraph=True),
    )
    monkeypatch.setattr(fuse, "can_fuse", lambda: True)
    monkeypatch.setattr(model_module, "_can_pack", lambda network, compute: True)
    monkeypatch.setattr(model_module, "packed_attention", attend_packed)
    torch.compiler.reset()
    counters.clear()
    yield counters["stats"]
    torch.compiler.reset()


def test_one_layer_is_compiled_for_all_layers_models_and_lengths(traced):
    models = [
        wrap(build_network(DEEPER, VOCABULARY, PREFIX, seed), window=16).frozen_copy()
        for seed in (0, 1)
    ]
    for number, lengths in enumerate(([3, 40, 9], [16] * 9, [2, 5], [61, 30, 30, 7])):
        documents = make_documents(lengths, seed=number)
        for model in models:
            found = document_losses(model, documents)
            for part in model.network.modules():
                part._compiled_call_impl = None
            np.testing.assert_allclose(found, document_losses(model, documents), atol=1e-5)
            fuse.fuse_layers(model.network)
    assert traced["unique_graphs"] == 2  # the layer, and the norm after the last
