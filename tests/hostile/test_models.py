"""A model folder or a dataset of somebody else's runs no code: no pickle, no module, no script."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_helpers import Payload
from run_helpers import curate, write_plain_pool
from tiny_models import PREFIX, SHAPE

from curate.errors import InvalidInput
from curate.read.tokenizer import load_tokenizer, train_tokenizer
from curate.train.model import build_network, count_parameters, find_shape, load_network


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that can be loaded."""
    folder = tmp_path_factory.mktemp("models") / "sound"
    tokenizer = train_tokenizer(iter(["river stone cloud"] * 20), 260)
    network: Any = build_network(SHAPE, tokenizer.vocabulary_size, PREFIX, 0)
    tokenizer.save(folder)  # takes the place of the folder
    network.save_pretrained(str(folder))
    return folder


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Path:
    """A copy to change, with a module beside it that writes `marker` when it is imported."""
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    code = (
        f"open({str(tmp_path / 'marker')!r}, 'w')\nimport transformers\n"
        "class EvilConfig(transformers.LlamaConfig):\n    model_type = 'evil'\n"
        "class EvilModel(transformers.LlamaForCausalLM):\n    config_class = EvilConfig\n"
        "class EvilTokenizer(transformers.PreTrainedTokenizerFast):\n    pass\n"
    )
    for name in ("evil.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    return folder


def edit(file: Path, **changes: Any) -> None:
    tree = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))


def load(folder: Path) -> None:
    """Everything that a run loads of a model folder."""
    shape = find_shape(str(folder))
    tokenizer = load_tokenizer(str(folder))
    count_parameters(str(folder), shape, tokenizer.vocabulary_size)
    load_network(str(folder))


MODULES = {
    "AutoConfig": "evil.EvilConfig",
    "AutoModelForCausalLM": "evil.EvilModel",
    "AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"],
}


def module_beside(folder: Path) -> None:
    edit(folder / "config.json", auto_map=MODULES)


def module_of_another_type(folder: Path) -> None:
    edit(folder / "config.json", auto_map=MODULES, model_type="evil", architectures=["EvilModel"])


def module_without_type(folder: Path) -> None:
    edit(folder / "config.json", auto_map=MODULES, model_type=None)


def tokenizer_module(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", auto_map=MODULES, tokenizer_class="EvilTokenizer")


def tokenizer_module_alone(folder: Path) -> None:
    tokenizer_module(folder)
    (folder / "tokenizer.json").unlink()


def kernel_of_the_hub(folder: Path) -> None:
    edit(folder / "config.json", attn_implementation="evil/kernel")


def pickle_alone(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(Payload(folder.parent / "marker"), folder / "pytorch_model.bin")


def pickle_by_an_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    torch.save(Payload(folder.parent / "marker"), folder / "evil.bin")
    index = {"metadata": {"total_size": 1}, "weight_map": {"lm_head.weight": "evil.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickle_by_another_name(folder: Path) -> None:
    torch.save(Payload(folder.parent / "marker"), folder / "model.safetensors")


def bare_pickle_by_another_name(folder: Path) -> None:
    data = pickle.dumps(Payload(folder.parent / "marker"))
    (folder / "model.safetensors").write_bytes(data)


def config_that_is_a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[1]")


def config_with_wrong_types(folder: Path) -> None:
    edit(folder / "config.json", hidden_size="big")


def config_with_another_shape(folder: Path) -> None:
    edit(folder / "config.json", vocab_size=1000)


def tokenizer_that_is_a_list(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("[]")


REFUSED: list[Callable[[Path], None]] = [
    module_of_another_type,
    module_without_type,
    tokenizer_module,
    tokenizer_module_alone,
    kernel_of_the_hub,
    pickle_alone,
    pickle_by_an_index,
    pickle_by_another_name,
    bare_pickle_by_another_name,
    config_that_is_a_list,
    config_with_wrong_types,
    config_with_another_shape,
    tokenizer_that_is_a_list,
]


@pytest.mark.parametrize("attack", REFUSED, ids=lambda attack: attack.__name__)
def test_a_hostile_model_is_refused_in_a_sentence(
    model: Path, attack: Callable[[Path], None]
) -> None:
    attack(model)
    with pytest.raises(InvalidInput) as caught:
        load(model)
    assert str(model) in caught.value.problem
    assert not (model.parent / "marker").exists()


def test_a_module_beside_sound_weights_is_not_run(model: Path) -> None:
    module_beside(model)
    torch.save(Payload(model.parent / "marker"), model / "pytorch_model.bin")
    load(model)
    assert not (model.parent / "marker").exists()


def test_the_payloads_would_work(tmp_path: Path) -> None:
    """Or the tests above would prove nothing."""
    torch.save(Payload(tmp_path / "marker"), tmp_path / "evil.bin")
    torch.load(tmp_path / "evil.bin", weights_only=False).close()
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["hf:{folder}", "hf:{folder}/data.py", "{folder}"])
def test_a_dataset_script_is_not_run(tmp_path: Path, name: str) -> None:
    place = write_plain_pool(tmp_path / "place")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\n")
    (folder / "train.pkl").write_bytes(pickle.dumps(Payload(tmp_path / "marker")))
    source = name.format(folder=folder)
    target = str(place / "target.parquet")
    result = curate("run", "--pool", source, "--target", target, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2, result.exception
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "out").exists()
