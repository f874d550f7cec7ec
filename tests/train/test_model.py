import copy
import errno
import json

import numpy as np
import pytest
import torch
import transformers
from tiny_models import (
    PREFIX,
    SHAPE,
    VOCABULARY,
    make_documents,
    make_model,
    one_thread,  # noqa: F401
    same_weights,
    weights_of,
    wrap,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from curate.errors import InvalidInput
from curate.score.loss import document_losses
from curate.train import model as model_module
from curate.train.model import PRESETS, build_network, count_parameters, find_shape, load_network

UNKNOWN = (
    "There is no model {}: it is not nano, tiny, small, base, and no causal language model "
    "with safetensors weights could be loaded from there."
)
REMEDY = "Set --model to one of the presets, a model folder or a Hub id."


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def saved(tmp_path):
    build_network(SHAPE, VOCABULARY, PREFIX, seed=0).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "low", "high"), [("tiny", 2e6, 5e6), ("small", 25e6, 35e6), ("base", 110e6, 140e6)]
)
def test_presets_have_the_sizes_that_the_settings_name(name, low, high):
    shape = find_shape(name)
    assert shape.vocabulary_size is not None
    assert low < count_parameters(name, shape, shape.vocabulary_size) < high
    assert shape.window <= shape.longest_window
    assert shape is PRESETS[name]


def test_parameters_are_counted_without_weights_and_tied_ones_once():
    network = build_network(SHAPE, VOCABULARY, PREFIX, seed=0)
    distinct = {parameter.data_ptr(): parameter.numel() for parameter in network.parameters()}
    assert count_parameters("x", SHAPE, VOCABULARY) == sum(distinct.values())
    assert network.get_input_embeddings().weight is network.get_output_embeddings().weight


def test_parameters_of_a_folder_are_counted(saved):
    shape = find_shape(str(saved))
    expected = count_parameters("x", SHAPE, VOCABULARY)
    assert count_parameters(str(saved), shape, VOCABULARY) == expected


def test_weights_follow_from_the_seed_and_the_global_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = make_model(1)
    torch.manual_seed(6)
    again, other = make_model(1), make_model(2)
    torch.manual_seed(5)
    make_model(1)
    assert torch.equal(torch.rand(3), expected)
    assert same_weights(weights_of(first), weights_of(again))
    assert not same_weights(weights_of(first), weights_of(other))


def test_an_unknown_name_is_explained(offline):
    with pytest.raises(InvalidInput) as caught:
        find_shape("nope")
    assert (caught.value.problem, caught.value.remedy) == (UNKNOWN.format("nope"), REMEDY)


def test_a_folder_without_a_model_is_explained(tmp_path):
    for content in (None, "{}", "no json", json.dumps({"model_type": "no such model"})):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        for load in (find_shape, load_network):
            with pytest.raises(InvalidInput) as caught:
                load(str(tmp_path))
            assert caught.value.problem == UNKNOWN.format(tmp_path)


def test_a_folder_gives_its_own_window_up_to_2048(saved):
    shape = find_shape(str(saved))
    assert (shape.window, shape.longest_window) == (64, 64)
    assert shape.llama is None
    assert shape.vocabulary_size is None
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 9000}))
    assert find_shape(str(saved)).window == 2048
    assert find_shape(str(saved)).longest_window == 9000


def test_saved_weights_come_back(saved):
    network = build_network(SHAPE, VOCABULARY, PREFIX, seed=0)
    loaded = load_network(str(saved))
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    assert same_weights(weights_of(wrap(network)), weights_of(wrap(loaded)))


def test_half_precision_weights_are_loaded_in_float32(tmp_path):
    build_network(SHAPE, VOCABULARY, PREFIX, seed=0).bfloat16().save_pretrained(tmp_path)
    loaded = load_network(str(tmp_path))
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())


def test_pickled_weights_are_refused(saved):
    torch.save(build_network(SHAPE, VOCABULARY, PREFIX, 0).state_dict(), saved / "x")
    (saved / "x").rename(saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    with pytest.raises(InvalidInput) as caught:
        load_network(str(saved))
    assert caught.value.problem == UNKNOWN.format(saved)
    assert caught.value.remedy == REMEDY


def test_weights_that_cannot_be_fetched_now_are_not_taken_for_no_model(offline):
    """Of a model whose config was there before: the same command may work later."""
    with pytest.raises(InvalidInput) as caught:
        load_network("owner/name")
    assert caught.value.problem.startswith("The weights of owner/name could not be loaded (")
    assert caught.value.remedy.startswith("Run the same command again when the network or the disk")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=["Python's", "the system's", "PyTorch's"],
)
def test_weights_that_do_not_fit_into_memory(saved, monkeypatch, error):
    def full(*arguments, **options):
        raise error

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", full)
    with pytest.raises(type(error)) as caught:
        load_network(str(saved))
    assert caught.value is error


def test_a_model_that_sees_what_it_is_to_predict_is_refused(tmp_path):
    """Transformers loads some as causal models that are not; their losses would mean nothing."""
    shape = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.RobertaConfig(**shape, intermediate_size=32, max_position_embeddings=66)
    transformers.RobertaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(InvalidInput) as caught:
        load_network(str(tmp_path))
    assert caught.value.problem == (
        f"The model {tmp_path} is not causal: it sees the tokens that it is to predict."
    )
    config.is_decoder = True
    transformers.RobertaForCausalLM(config).save_pretrained(tmp_path)
    load_network(str(tmp_path))


def test_code_in_a_model_folder_is_not_run(saved):
    mark = saved / "ran"
    (saved / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass A: pass\n")
    config = json.loads((saved / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.A", "AutoModelForCausalLM": "evil.A"},
    }
    (saved / "config.json").write_text(json.dumps(config))
    for load in (find_shape, load_network):
        with pytest.raises(InvalidInput):
            load(str(saved))
    assert not mark.exists()


def test_copies_are_independent():
    model, documents = make_model(), make_documents([5, 12])
    expected = document_losses(model, documents)
    frozen, trainable = model.frozen_copy(), model.trainable_copy()
    assert not any(parameter.requires_grad for parameter in frozen.network.parameters())
    assert all(parameter.requires_grad for parameter in trainable.network.parameters())
    assert all(parameter.requires_grad for parameter in model.network.parameters())
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(1.5)
    for twin in (frozen, trainable):
        np.testing.assert_array_equal(document_losses(twin, documents), expected)
    assert np.abs(document_losses(model, documents) - expected).max() > 1e-3


def test_models_run_without_dropout():
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=64, resid_pdrop=0.9
    )
    network = transformers.GPT2LMHeadModel(config).train()
    model, documents = wrap(network), make_documents([12])
    np.testing.assert_array_equal(
        document_losses(model, documents), document_losses(model, documents)
    )
    assert not model.trainable_copy().network.training
    assert not copy.copy(model).network.training


def test_norms_are_those_of_llama(monkeypatch):
    """PyTorch's norm takes the place of transformers', with the same weights, names and numbers."""
    ours = build_network(SHAPE, VOCABULARY, PREFIX, seed=0)
    monkeypatch.setattr("curate.train.model._use_native_norms", lambda network: None)
    theirs = build_network(SHAPE, VOCABULARY, PREFIX, seed=0)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert not [one for one in ours.modules() if isinstance(one, LlamaRMSNorm)]
    inputs = torch.arange(20)[None]
    for network in (ours, theirs):
        network(input_ids=inputs, labels=inputs).loss.backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)


def test_a_model_may_name_its_sizes_in_its_own_way():
    class Config:
        def get_text_config(self):
            return self

    network = torch.nn.Module()
    network.config = Config()
    assert model_module._width(network) == 32 * 4096
    network.config = transformers.GPT2Config(n_layer=3, n_embd=8)
    assert model_module._width(network) == 24
