import numpy as np
import pytest
import torch
import transformers
from tiny_models import (
    PREFIX,
    VOCABULARY,
    make_documents,
    make_model,
    one_thread,  # noqa: F401
    plain_token_losses,
    tokens_of,
    wrap,
)

from curate.read.documents import concatenate
from curate.read.windows import sampled_windows
from curate.score.loss import document_losses, mean_loss, tokens_read
from curate.train import model as model_module
from curate.train.model import load_network

LENGTHS = [1, 2, 7, 8, 9, 13, 14, 16, 31, 60]
CONFIGS = {
    "llama": transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.3,
    ),
    "gpt2": transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        initializer_range=0.3,
        # Dropout must be off while curate trains and scores.
        resid_pdrop=0.5,
        embd_pdrop=0.5,
        attn_pdrop=0.5,
    ),
    "phi": transformers.PhiConfig(  # its output head has a bias
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        bos_token_id=PREFIX,
        eos_token_id=PREFIX,
    ),
    "gemma2": transformers.Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=32,
        max_position_embeddings=64,
        query_pre_attn_scalar=8,
        sliding_window=16,
        initializer_range=0.5,
        final_logit_softcapping=2.0,
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(CONFIGS[request.param]).save_pretrained(path)
    assert (path / "model.safetensors").exists()
    return path


def plain_means(network, documents, **sizes):
    with torch.no_grad():
        return [
            float(torch.stack(plain_token_losses(network, one, **sizes)).double().mean())
            for one in tokens_of(documents)
        ]


@pytest.mark.parametrize(("window", "overlap"), [(8, 3), (2, 1), (32, 31)])
def test_losses_are_those_of_a_plain_loop(folder, window, overlap):
    network = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    documents = make_documents(LENGTHS)
    expected = plain_means(network, documents, window=window, overlap=overlap)
    assert np.ptp(expected) > 0.1
    for microbatch_tokens in (1, 70, 4096):
        model = wrap(
            load_network(str(folder)),
            window=window,
            overlap=overlap,
            microbatch_tokens=microbatch_tokens,
        )
        losses = document_losses(model, documents)
        assert losses.dtype == np.float64
        np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_a_sampled_loss_is_the_mean_over_the_pieces_that_were_read(folder):
    network = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    documents = make_documents([60, 8, 9])
    expected = plain_means(network, documents)
    for place, starts in ((0, (0, 19, 38, 58)), (2, (0, 2, 4, 7))):
        tokens, losses = tokens_of(documents)[place], []
        for start in starts:
            read = [PREFIX, *tokens][start : start + 2]
            with torch.no_grad():
                logits = network(input_ids=torch.tensor([read])).logits[0].float()
            losses += (-logits.log_softmax(-1)[[0, 1], tokens[start : start + 2]]).tolist()
        expected[place] = np.mean(losses)
    model = wrap(load_network(str(folder)))
    np.testing.assert_allclose(document_losses(model, documents, 8), expected, rtol=1e-4)
    assert tokens_read(model, documents, 8).tolist() == [8, 8, 8]
    assert tokens_read(model, documents, None).tolist() == [60, 8, 9]


@pytest.mark.parametrize("most", [4, 6, 8, 9, 31, 33, 50, 64])
def test_as_many_tokens_are_said_to_be_read_as_windows_predict(most):
    documents = make_documents([0, 3, 6, 8, 9, 40, 64, 65, 300])
    windows = sampled_windows(documents.lengths, 8, 3, most)
    predicted = np.bincount(windows.document, windows.stop - windows.scored, len(documents))
    assert tokens_read(make_model(), documents, most).tolist() == predicted.tolist()


def test_soft_capped_logits_do_not_take_the_short_way(folder):
    """Shows that the comparison above would notice it if they did."""
    network = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    inputs = torch.arange(8)[None]
    with torch.no_grad():
        hidden = network.get_decoder()(input_ids=inputs).last_hidden_state
        short = network.get_output_embeddings()(hidden)
        difference = float((network(input_ids=inputs).logits - short).abs().max())
    assert (difference > 0.3) == ("gemma2" in folder.name)


def test_losses_do_not_depend_on_the_batch(folder):
    documents = make_documents([*LENGTHS, *LENGTHS[::-1]], seed=1)
    model = wrap(load_network(str(folder)))
    expected = document_losses(model, documents)
    random = np.random.default_rng(0)
    for microbatch_tokens in (1, 64, 333, 4096):
        model = wrap(load_network(str(folder)), microbatch_tokens=microbatch_tokens)
        order = random.permutation(len(documents))
        losses = document_losses(model, documents.take(order))
        np.testing.assert_allclose(losses, expected[order], rtol=1e-5)
    alone = [document_losses(model, documents.take(np.array([i])))[0] for i in range(20)]
    np.testing.assert_allclose(alone, expected, rtol=1e-5)


def test_a_document_is_scored_without_its_neighbours():
    model = make_model()
    documents = make_documents([5, 20, 9])
    before = document_losses(model, documents)
    documents.input_ids[5:25] = (documents.input_ids[5:25] + 1) % VOCABULARY
    after = document_losses(model, documents)
    assert before[1] != after[1]
    np.testing.assert_allclose(after[[0, 2]], before[[0, 2]], rtol=1e-6)


def test_the_first_token_is_predicted_from_the_prefix():
    model = make_model()
    documents = make_documents([1] * 5)
    with torch.no_grad():
        logits = model.network(input_ids=torch.tensor([[PREFIX]])).logits[0, 0]
    expected = -logits.log_softmax(-1)[documents.input_ids.astype(np.int64)]
    np.testing.assert_allclose(document_losses(model, documents), expected, rtol=1e-5)


def test_chunked_output_head_changes_nothing(monkeypatch):
    model, documents = make_model(), make_documents(LENGTHS)
    expected = document_losses(model, documents)
    for chunk_rows in (1, 7):
        monkeypatch.setattr(model_module, "_LOGITS_AT_ONCE", {"cpu": chunk_rows * VOCABULARY})
        monkeypatch.setattr(model_module, "_HEAD_MULTIPLE", chunk_rows)
        np.testing.assert_allclose(document_losses(model, documents), expected, rtol=1e-5)


def test_empty_documents_have_no_loss_and_disturb_nobody():
    model = make_model()
    losses = document_losses(model, make_documents([0, 5, 0, 12, 0]))
    assert np.isnan(losses).tolist() == [True, False, True, False, True]
    np.testing.assert_allclose(
        losses[[1, 3]], document_losses(model, make_documents([5, 12])), rtol=1e-6
    )
    assert document_losses(model, concatenate([])).shape == (0,)


def test_mean_loss_is_per_token_not_per_document():
    model, documents = make_model(), make_documents([1, 40])
    short, long = document_losses(model, documents)
    assert abs(short - long) > 0.05
    assert mean_loss(model, documents) == pytest.approx((short + 40 * long) / 41, rel=1e-9)


def test_scoring_leaves_no_gradients():
    model = make_model()
    document_losses(model, make_documents([9]))
    assert all(parameter.grad is None for parameter in model.network.parameters())
    assert all(parameter.requires_grad for parameter in model.network.parameters())


def test_a_window_as_long_as_the_positions_a_model_has():
    """Padding must not read past a learned table of positions (here 20, no multiple of 32)."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=20
    )
    torch.manual_seed(0)
    network = transformers.GPT2LMHeadModel(config).eval()
    documents = make_documents([5, 20, 45])
    losses = document_losses(wrap(network, window=20, overlap=2), documents)
    expected = plain_means(network, documents, window=20, overlap=2)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
