"""What may not change between two starts of a run: settings, versions, inputs and models."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from run_helpers import (
    Fault,
    Run,
    curate,
    run_arguments,
    run_tiny,
    snapshot,
    write_plain_pool,
)

from curate import verify
from curate.errors import OutputConflict
from curate.pipeline.model_files import model_files
from curate.read.tokenizer import train_tokenizer
from curate.train.model import PRESETS, build_network


def interrupted(inputs: Path, out: Path, fault: Fault) -> None:
    fault.at("tokens", after=True)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(inputs, out)
    fault.at(None, after=True)


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"keep": 0.3}, "keep (0.2 then, 0.3 now)"),
        ({"seed": 1}, "seed (0 then, 1 now)"),
        ({"blade.lambda": 0.5}, "blade.lambda (0.0 then, 0.5 now)"),
        ({"model.window": 64}, "model.window (32 then, 64 now)"),
        ({"keep": 0.3, "seed": 1, "method": "random"}, "keep (0.2 then, 0.3 now) and 2 more"),
        ({"metadata_columns": ["id"]}, "metadata_columns (None then, ['id'] now)"),
    ],
)
def test_a_changed_setting_is_named(
    tmp_path: Path, fault: Fault, settings: dict[str, Any], difference: str
) -> None:
    inputs, out = write_plain_pool(tmp_path), tmp_path / "out"
    interrupted(inputs, out, fault)
    before = snapshot(out)
    with pytest.raises(OutputConflict) as caught:
        run_tiny(inputs, out, **settings)
    assert caught.value.exit_code == 2
    assert caught.value.problem == (
        f"The output folder {out} holds a run that differs in {difference}."
    )
    assert caught.value.remedy == "Give another folder with --out, or remove this one."
    assert snapshot(out) == before


def test_a_run_goes_on_with_the_version_that_began_it_alone(tmp_path: Path, fault: Fault) -> None:
    inputs, out = write_plain_pool(tmp_path), tmp_path / "out"
    interrupted(inputs, out, fault)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "curate_version": "0.0.1"}))
    before = snapshot(out)
    with pytest.raises(OutputConflict) as caught:
        run_tiny(inputs, out)
    assert caught.value.problem == (
        f"The run in {out} was begun by curate 0.0.1, and this is {version('curate')}, "
        "which may decide otherwise."
    )
    assert caught.value.remedy == (
        "Go on with the version that began it, or give another folder with --out."
    )
    assert snapshot(out) == before


def test_models_go_on_in_the_precision_that_they_began_in(
    tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a machine's accelerator is not found the second time; what is set is the same."""
    inputs, out = write_plain_pool(tmp_path), tmp_path / "out"
    auto = {"compute__dtype": "auto"}

    def has_bfloat16(has: bool) -> None:
        monkeypatch.setattr("curate.train.compute._multiplies_bfloat16", lambda device: has)

    has_bfloat16(True)
    fault.at("tokens", after=True)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(inputs, out, **auto)
    has_bfloat16(False)  # as nothing was trained
    fault.at("warm-up", after=True)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(inputs, out, **auto)
    has_bfloat16(True)
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(OutputConflict) as caught:
        run_tiny(inputs, out, **auto)
    assert caught.value.problem == (
        f"The models of the run in {out} began on cpu in float32, and here they would be on cpu in "
        "bfloat16, which rounds otherwise."
    )
    assert caught.value.remedy == "Go on where it began, or give another folder with --out."
    assert (out / "manifest.json").read_bytes() == before
    has_bfloat16(False)
    fault.at("select", after=True)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(inputs, out, **auto)
    has_bfloat16(True)  # as no model has work left
    fault.at(None, after=True)
    run = run_tiny(inputs, out, **auto)
    assert run.sql("SELECT device, dtype FROM run") == [("cpu", "float32")]
    assert verify(out, full=True).holds


def test_a_finished_run_of_other_settings_is_left_alone(whole_random: Run) -> None:
    before = snapshot(whole_random.out)
    result = curate(*run_arguments(whole_random.inputs, whole_random.out, method="random", seed=5))
    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: The output folder {whole_random.out} holds a run that differs in "
        "seed (0 then, 5 now).\n"
        "To fix: Give another folder with --out, or remove this one.\n"
    )
    assert snapshot(whole_random.out) == before


def change(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)


@pytest.mark.parametrize(
    ("alter", "name", "difference"),
    [
        (change, "pool/1.parquet", "the pool shard {path} (changed)"),
        (change, "target.parquet", "the target shard {path} (changed)"),
        (Path.unlink, "pool/1.parquet", "the pool shard {path} (gone)"),
    ],
    ids=["changed", "target", "gone"],
)
def test_a_changed_input_is_named(
    tmp_path: Path, fault: Fault, alter: Callable[[Path], None], name: str, difference: str
) -> None:
    inputs, out = write_plain_pool(tmp_path), tmp_path / "out"
    interrupted(inputs, out, fault)
    alter(inputs / name)
    with pytest.raises(OutputConflict) as caught:
        run_tiny(inputs, out)
    named = difference.format(path=inputs / name)
    assert caught.value.problem == (f"The output folder {out} holds a run that differs in {named}.")


def test_an_added_shard_is_named(tmp_path: Path, fault: Fault) -> None:
    inputs, out = write_plain_pool(tmp_path), tmp_path / "out"
    interrupted(inputs, out, fault)
    added = inputs / "pool" / "2.parquet"
    added.write_bytes((inputs / "pool" / "1.parquet").read_bytes())
    with pytest.raises(OutputConflict, match=re.escape(f"the pool shard {added} (added)")):
        run_tiny(inputs, out)


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with its tokenizer; never change it."""
    folder = tmp_path_factory.mktemp("pretrained") / "model"
    tokenizer = train_tokenizer(iter(["river stone cloud amber"] * 9), 300)
    tokenizer.save(folder)
    size, prefix = tokenizer.vocabulary_size, tokenizer.prefix_id
    network: Any = build_network(PRESETS["nano"], size, prefix, 0)
    network.save_pretrained(str(folder))
    return folder


def other_weights(model: Path) -> None:
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2000] ^= 1
    times = weights.stat()
    weights.write_bytes(content)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns + 1))


def other_shape(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))


@pytest.mark.parametrize(
    ("alter", "difference"),
    [
        (other_weights, "the model's model.safetensors (changed)"),
        (other_shape, "the model's config.json (changed)"),
        (lambda model: (model / "merges.txt").touch(), "the model's merges.txt (added)"),
        (lambda model: (model / "README.md").write_text("notes"), None),
    ],
    ids=["weights", "config", "added", "notes"],
)
def test_a_changed_model_is_named(
    tmp_path: Path,
    fault: Fault,
    pretrained: Path,
    alter: Callable[[Path], None],
    difference: str | None,
) -> None:
    inputs, out = write_plain_pool(tmp_path), tmp_path / "out"
    model = Path(shutil.copytree(pretrained, tmp_path / "model"))
    settings = {"model.name": str(model), "method": "random"}
    fault.at("tokens", after=True)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(inputs, out, **settings)
    fault.at(None, after=True)
    alter(model)
    if difference is None:
        run_tiny(inputs, out, **settings)
        assert curate("verify", str(out)).exit_code == 0
        return
    before = snapshot(out)
    with pytest.raises(OutputConflict) as caught:
        run_tiny(inputs, out, **settings)
    assert caught.value.problem == (
        f"The output folder {out} holds a run that differs in {difference}."
    )
    assert snapshot(out) == before


def test_a_run_of_before_models_were_recorded_goes_on(
    tmp_path: Path, fault: Fault, pretrained: Path
) -> None:
    inputs, out = write_plain_pool(tmp_path), tmp_path / "out"
    settings = {"model.name": str(pretrained), "method": "random"}
    fault.at("tokens", after=True)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(inputs, out, **settings)
    fault.at(None, after=True)
    manifest = json.loads((out / "manifest.json").read_text())
    files = {one["name"] for one in manifest.pop("model")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    (out / "manifest.json").write_text(json.dumps(manifest))
    run_tiny(inputs, out, **settings)
    assert "model" not in json.loads((out / "manifest.json").read_text())
    assert curate("verify", str(out)).exit_code == 0


def test_a_model_in_the_home_folder(
    tmp_path: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell leaves `~` as it is within --set and YAML; transformers takes it for an id."""
    monkeypatch.setenv("HOME", str(pretrained.parent))
    inputs, out = write_plain_pool(tmp_path), tmp_path / "out"
    settings = {"model.name": f"~/{pretrained.name}", "method": "perplexity"}
    run_tiny(inputs, out, **settings)
    recorded = json.loads((out / "manifest.json").read_text())["config"]["model"]["name"]
    assert recorded == str(pretrained)
    run_tiny(inputs, out, **{**settings, "model.name": str(pretrained)})
    result = curate(*run_arguments(inputs, tmp_path / "other", model__name="~no-such-user/model"))
    assert result.exit_code == 2
    assert "There is no user of the name in ~no-such-user/model." in result.stderr


def test_a_model_of_the_hub_is_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert model_files("nano") == model_files("owner/name") == []
    place = tmp_path / "models--owner--name"
    for folder in ("refs", "snapshots/c0ffee"):
        (place / folder).mkdir(parents=True)
    (place / "refs" / "main").write_text("c0ffee")
    (place / "snapshots" / "c0ffee" / "config.json").write_text("{}")
    assert model_files("owner/name") == [{"name": "commit", "fingerprint": "c0ffee"}]
