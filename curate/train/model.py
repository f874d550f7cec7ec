"""The language models: Llama shapes from scratch, or any pretrained causal model.

`LanguageModel` is the one view of a network that training and scoring share: token ids in, the loss
of each counted token out. The full table of logits (tokens x vocabulary) is the largest tensor of a
small model, so the output head is applied only at counted positions and a chunk at a time. That is
right only for models whose logits are exactly those of a linear head on `decoder(inputs)`; others
(soft-capped or scaled logits, a head with a bias) are recognized at load and take the plain path.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from curate.errors import InvalidInput, is_of_memory
from curate.read.documents import Documents
from curate.read.locate import display_uri, short_reason
from curate.read.windows import Batch, Windows, make_batches, pack_batches
from curate.train.attention import BLOCKED, packed_attention, register_blocked
from curate.train.compute import Compute
from curate.train.flash import flash_attention, has_flash_attention
from curate.train.fuse import fuse_layers
from curate.train.head import head_losses

_LOGITS_AT_ONCE = {"cpu": 1 << 26, "cuda": 1 << 29}
"""128 MiB and 1 GiB in bfloat16."""
_HELD_PIECES = {"cpu": 1, "cuda": 4}
"""Times as many logits whose errors are kept for the gradient; with more, they are made again."""
_PACKING_CAPABILITY = 8, 0
"""Compute capability from which on PyTorch has a kernel for packed attention (Ampere)."""
_FLASH_FROM = 1024
"""Tokens of a batch's longest window from which on FlashAttention 4 is the faster kernel."""
_MANY_LAYERS, _MANY_UNITS = 32, 4096
"""Taken for a model whose config names its sizes otherwise: those of 7 billion parameters."""
_HEAD_MULTIPLE = 128
"""The output head sees multiples of this many positions, so that its shapes are few."""
_LONGEST_PRETRAINED_WINDOW = 2048
_KERNELS = ("_attn_implementation", "_experts_implementation")
"""Where a model's config may name a repository of the Hub whose code is to be fetched and run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What is known of a model before its weights are made: sizes and training defaults."""

    window: int
    longest_window: int
    vocabulary_size: int | None
    batch_tokens: int
    learning_rate: float
    llama: dict[str, int] | None = None


PRESETS: dict[str, ModelShape] = {
    "nano": ModelShape(
        window=256,
        longest_window=1 << 16,
        vocabulary_size=2048,
        batch_tokens=1024,
        learning_rate=2e-3,
        llama={"hidden": 128, "layers": 2, "heads": 2, "intermediate": 352},
    ),
    "tiny": ModelShape(
        window=512,
        longest_window=1 << 16,
        vocabulary_size=4096,
        batch_tokens=2048,
        learning_rate=2e-3,
        llama={"hidden": 256, "layers": 2, "heads": 4, "intermediate": 704},
    ),
    "small": ModelShape(
        window=1024,
        longest_window=1 << 16,
        vocabulary_size=16384,
        batch_tokens=16384,
        learning_rate=1e-3,
        llama={"hidden": 512, "layers": 7, "heads": 8, "intermediate": 1408},
    ),
    "base": ModelShape(
        window=2048,
        longest_window=1 << 16,
        vocabulary_size=32768,
        batch_tokens=65536,
        learning_rate=6e-4,
        llama={"hidden": 768, "layers": 12, "heads": 12, "intermediate": 2560},
    ),
}


def find_shape(name: str) -> ModelShape:
    """The shape of a preset, or of a pretrained model whose config can be read.

    Raises:
        InvalidInput: `name` is no preset and no causal language model that can be loaded.
    """
    if name in PRESETS:
        return PRESETS[name]
    folder = Path(name)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise _unknown_model(name)
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception:  # a config of somebody else's can fail in any way
        raise _unknown_model(name) from None
    if any("/" in str(getattr(config, kernel, "")) for kernel in _KERNELS):
        raise _unknown_model(name)
    longest = getattr(config, "max_position_embeddings", None) or _LONGEST_PRETRAINED_WINDOW
    return ModelShape(
        window=min(longest, _LONGEST_PRETRAINED_WINDOW),
        longest_window=longest,
        vocabulary_size=None,
        batch_tokens=32768,
        learning_rate=2e-5,
    )


def build_network(
    shape: ModelShape, vocabulary_size: int, separator_id: int, seed: int
) -> nn.Module:
    """A Llama network with random weights that follow from `seed` alone."""
    if shape.llama is None:
        raise ValueError("only presets are built from scratch")
    config: Any = transformers.LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=shape.llama["hidden"],
        num_hidden_layers=shape.llama["layers"],
        num_attention_heads=shape.llama["heads"],
        num_key_value_heads=shape.llama["heads"],
        intermediate_size=shape.llama["intermediate"],
        max_position_embeddings=shape.longest_window,
        tie_word_embeddings=True,
        bos_token_id=separator_id,
        eos_token_id=separator_id,
    )
    register_blocked()
    config._attn_implementation = BLOCKED
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = transformers.LlamaForCausalLM(config)
    _use_native_norms(network)
    return network


class _Norm(nn.RMSNorm):
    """In float32, whatever layers pass on to each other."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def _use_native_norms(network: nn.Module) -> None:
    """Take PyTorch's RMSNorm, which does the same in a third of the time both ways."""
    for name, module in list(network.named_modules()):
        if isinstance(module, LlamaRMSNorm):
            norm = _Norm(len(module.weight), eps=module.variance_epsilon)
            norm.weight = module.weight
            network.set_submodule(name, norm)


def count_parameters(name: str, shape: ModelShape, vocabulary_size: int) -> int:
    """Distinct parameters of a model, without making its weights."""
    with torch.device("meta"):
        if shape.llama is None:
            config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
            build: Any = transformers.AutoModelForCausalLM.from_config
            network = build(config)
        else:
            network = build_network(shape, vocabulary_size, separator_id=0, seed=0)
    return sum(parameter.numel() for parameter in network.parameters())


def make_network(
    name: str, shape: ModelShape, vocabulary_size: int, separator_id: int, seed: int
) -> nn.Module:
    """A model before any step of ours: a preset from scratch, or pretrained weights.

    Raises:
        InvalidInput: the weights cannot be loaded.
    """
    if shape.llama is None:
        return load_network(name)
    return build_network(shape, vocabulary_size, separator_id, seed)


def load_network(name: str) -> nn.Module:
    """Pretrained weights from safetensors, in float32; never runs the repository's own code.

    Raises:
        InvalidInput: the weights cannot be loaded that way, or not now.
    """
    try:
        network: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
            name, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        )
    except Exception as error:  # weights of somebody else's can fail in any way
        if is_of_memory(error):
            raise
        if Path(name).is_dir():
            raise _unknown_model(name) from None
        raise InvalidInput(
            f"The weights of {display_uri(name)} could not be loaded ({short_reason(error)}).",
            "Run the same command again when the network or the disk is well; set --model to "
            "another if it has no safetensors weights.",
        ) from None
    if not _is_causal(network):
        raise InvalidInput(
            f"The model {display_uri(name)} is not causal: it sees the tokens that it is to "
            "predict.",
            "Set --model to a causal language model.",
        )
    return network


@torch.no_grad()
def _is_causal(network: nn.Module) -> bool:
    """Whether what a network says of a token depends on no later one, tried on a few tokens."""
    first, second = (
        network.eval()(input_ids=torch.tensor([[2, 3, 4, last]])).logits[:, :3] for last in (5, 6)
    )
    return torch.allclose(first, second, rtol=1e-4, atol=1e-6)


def _unknown_model(name: str) -> InvalidInput:
    return InvalidInput(
        f"There is no model {display_uri(name)}: it is not {', '.join(PRESETS)}, and no causal "
        "language model with safetensors weights could be loaded from there.",
        "Set --model to one of the presets, a model folder or a Hub id.",
    )


class LanguageModel:
    """A causal network together with how documents pass through it.

    Attributes:
        network: a transformers causal language model, always in evaluation mode (no dropout).
        window: inputs read at once.
        overlap: inputs each later window of a long document re-reads as context.
        prefix_id: the separator in front of each document.
        compute: device and precision.
        microbatch_tokens: padded tokens in one forward pass that scores.
        training_microbatch_tokens: in one whose activations are kept for the gradient.
        held_tokens: tokens whose activations may be held over several; None for any number.
    """

    def __init__(
        self, network: nn.Module, *, window: int, overlap: int, prefix_id: int, compute: Compute
    ) -> None:
        self.network = network.to(compute.device).eval()
        self._packs = _can_pack(network, compute)
        self._flashes = self._packs and has_flash_attention(compute.device)
        self.window, self.overlap, self.prefix_id = window, overlap, prefix_id
        self.compute = compute
        self._direct_head = _has_direct_head(network, prefix_id)
        if self._packs:
            _keep_angles_exact(network)
        fuses = self._packs and fuse_layers(network)
        size = sum(one.numel() * one.element_size() for one in network.parameters())
        kind: Literal["fused", "plain"] = "fused" if fuses else "plain"
        self.microbatch_tokens, self.training_microbatch_tokens = compute.tokens_for(
            _width(network), kind, size
        )
        self.held_tokens = compute.held_tokens(_width(network), kind, size)

    def frozen_copy(self) -> LanguageModel:
        """An independent copy without gradients."""
        twin = copy.copy(self)
        twin.network = copy.deepcopy(self.network).requires_grad_(False)
        if self._packs:
            fuse_layers(twin.network)  # copies forget it
        return twin

    def trainable_copy(self) -> LanguageModel:
        """An independent copy that can be trained."""
        twin = self.frozen_copy()
        twin.network.requires_grad_(True)
        return twin

    def batches(
        self, documents: Documents, windows: Windows, microbatch_tokens: int
    ) -> Iterator[Batch]:
        """The windows in batches of at most `microbatch_tokens`, in the form that is fastest.

        Each is made when it is asked for, so that a GPU is at work on the one before.
        """
        make = pack_batches if self._packs else make_batches
        return make(
            documents, windows, prefix_id=self.prefix_id, microbatch_tokens=microbatch_tokens
        )

    def token_losses(self, batch: Batch) -> Tensor:
        """Loss of each counted token, float32 [M], nats, window by window of the batch."""
        labels = batch.labels.ravel()
        cells = batch.counted  # here: a device would have to be waited for
        counted, targets = self.compute.send(cells), self.compute.send(labels[cells])
        with self.compute.autocast():
            losses = list(self._chunk_losses(self._inputs(batch), counted, targets))
        return torch.cat(losses)

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        """What the network is called with.

        Packed, layers pass on to each other what they compute in, as is usual on a GPU: reading
        and writing float32 between them would take a twentieth of the time.
        """
        send = self.compute.send
        inputs = send(batch.inputs)
        if batch.starts is None:
            return {"input_ids": inputs, "use_cache": False}
        lengths = np.diff(batch.starts)
        longest = int(lengths.max())
        flashes = self._flashes and longest >= _FLASH_FROM
        positions = np.arange(batch.starts[-1]) - np.repeat(batch.starts[:-1], lengths)
        embed: Any = self.network.get_input_embeddings()  # type: ignore[operator]
        return {
            "inputs_embeds": embed(inputs).to(self.compute.dtype),
            "position_ids": send(positions[None]),
            "cu_seq_lens_q": send(batch.starts.astype(np.int32)),
            "max_length_q": longest,
            "packed_attention": flash_attention if flashes else packed_attention,
            "use_cache": False,
        }

    def _chunk_losses(
        self, inputs: dict[str, Any], counted: Tensor, targets: Tensor
    ) -> Iterator[Tensor]:
        """Losses at the flat positions `counted`, a chunk of logits at a time."""
        if not self._direct_head:
            logits = self.network(**inputs).logits
            yield _cross_entropy(logits.flatten(0, 1)[counted], targets)
            return
        decoder, head = _parts(self.network)
        hidden = decoder(**inputs).last_hidden_state.flatten(0, 1)
        kind = hidden.device.type
        learns, weight = torch.is_grad_enabled(), head.weight
        if not learns:
            weight = weight.to(self.compute.dtype)  # once, instead of for each piece
        rows = max(_HEAD_MULTIPLE, _LOGITS_AT_ONCE[kind] // len(weight))
        held = rows * _HELD_PIECES[kind]
        many = learns and len(targets) > held
        pieces = zip(torch.split(counted, rows), torch.split(targets, rows), strict=True)
        for positions, target in pieces:
            padding = (0, -len(positions) % _HEAD_MULTIPLE)
            factors = hidden[nn.functional.pad(positions, padding)], weight
            padded = nn.functional.pad(target, padding)
            arguments = (*factors, padded, self.compute.dtype)
            if many:
                losses = checkpoint(head_losses, *arguments, use_reentrant=False)
            else:
                losses = head_losses(*arguments)
            yield losses[: len(target)]


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def _parts(network: nn.Module) -> tuple[nn.Module, nn.Linear]:
    return network.get_decoder(), network.get_output_embeddings()  # type: ignore[operator]


def _can_pack(network: nn.Module, compute: Compute) -> bool:
    """Whether windows may share a row: on a GPU, and with attention that keeps them apart."""
    if compute.device.type != "cuda" or compute.dtype != torch.bfloat16:
        return False
    ours = getattr(network.config, "_attn_implementation", None) == BLOCKED
    if torch.version.hip is not None:  # where capabilities are other numbers; not tried
        return False
    return ours and torch.cuda.get_device_capability(compute.device) >= _PACKING_CAPABILITY


def _width(network: nn.Module) -> int:
    """Hidden units of all layers together; those of a large model where its config has others."""
    whole: Any = network.config
    config = whole.get_text_config()
    layers = getattr(config, "num_hidden_layers", _MANY_LAYERS)
    return int(layers * getattr(config, "hidden_size", _MANY_UNITS))


def _keep_angles_exact(network: nn.Module) -> None:
    """Let rotary embeddings be float32 whatever the layers compute in."""
    decoder, _ = _parts(network)
    rotary: Any = decoder.rotary_emb
    rotary.register_forward_pre_hook(_as_float32)


def _as_float32(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    hidden, *others = inputs
    return hidden.new_empty(0, dtype=torch.float32), *others  # it is asked for its type alone


@torch.no_grad()
def _has_direct_head(network: nn.Module, prefix_id: int) -> bool:
    """Whether logits are exactly decoder(inputs) times the head's weights, tried on a few tokens.

    The decoder's output is blown up for the trial, so that a soft cap shows on small logits too.
    """
    try:
        decoder, head = _parts(network)
    except AttributeError:
        return False
    if type(head) is not nn.Linear or head.bias is not None:
        return False
    handle = decoder.register_forward_hook(_blow_up)
    device = next(network.parameters()).device
    inputs = torch.tensor([[prefix_id, 0, 1, 2]], device=device)
    try:
        logits = network(input_ids=inputs, use_cache=False).logits
        mine = head(decoder(input_ids=inputs, use_cache=False).last_hidden_state)
    except (AttributeError, TypeError):
        return False
    finally:
        handle.remove()
    return mine.shape == logits.shape and torch.allclose(mine, logits, rtol=1e-4, atol=1e-4)


def _blow_up(module: nn.Module, inputs: object, output: Any) -> Any:
    output.last_hidden_state = output.last_hidden_state * 100.0
    return output
