"""A config from anywhere runs nothing, grows nothing and ends in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_helpers import curate

from curate.config import load_config
from curate.errors import InvalidInput

HEAD = "pool: p\ntarget: t\nout: o\n"


def laughs(levels: int, form: str) -> str:
    """Nine of the level below on each level: 9 ** levels in all."""
    lines = ["a0: &a0 {x: lol}"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} " + form.format(", ".join([f"*a{level - 1}"] * 9)))
    return "\n".join(lines) + "\n"


REFUSED = {
    "laughs": (laughs(40, "[{}]"), "There is no setting a0."),
    "laughs in a list": (
        f"{HEAD}metadata_columns:\n- &a0 [x, x]\n"
        + "".join(f"- &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40)),
        "metadata_columns must be text, but is a list.",
    ),
    "laughs by merging": (
        laughs(40, "{{<<: [{}]}}"),
        "The config file {path} uses a merge key at line 2.",
    ),
    "a cycle": ("&a\npool: *a\n", "pool must be text, but is a mapping."),
    "depth": ("pool: " + "[" * 1200, "The config file {path} is not valid YAML."),
    "depth of mappings": ("{a: " * 1200, "The config file {path} is not valid YAML."),
    "a key twice": (
        f"{HEAD}seed: 1\nseed: 2\n",
        "The config file {path} gives a key for the second time at line 5.",
    ),
    "a nested key twice": (
        f"{HEAD}model:\n  name: tiny\n  name: evil\n",
        "The config file {path} gives a key for the second time at line 6.",
    ),
    "a long number": (
        f"{HEAD}seed: {'9' * 5000}\n",
        "The config file {path} has a number of 5000 characters at line 4.",
    ),
    "a long hexadecimal": (
        f"{HEAD}seed: 0x{'f' * 100_000}\n",
        "The config file {path} has a number of 100002 characters at line 4.",
    ),
    "a long sexagesimal": (
        f"{HEAD}seed: 1{':59' * 2000}\n",
        "The config file {path} has a number of 6001 characters at line 4.",
    ),
    "a large number": (
        f"{HEAD}seed: 0x{'f' * 900}\n",
        "seed must be a number in [0, 9.22337e+18], but is 51048665... (1084 digits).",
    ),
    "no date": (f"{HEAD}seed: 2024-99-99\n", "The config file {path} is not valid YAML."),
    "no digits": (f"{HEAD}seed: !!int _\n", "The config file {path} is not valid YAML."),
    "no integer": (f"{HEAD}seed: !!int abc\n", "The config file {path} is not valid YAML."),
    "no float": (f"{HEAD}keep: !!float abc\n", "The config file {path} is not valid YAML."),
    "no boolean": (f"{HEAD}seed: !!bool abc\n", "The config file {path} is not valid YAML."),
    "no timestamp": (f"{HEAD}seed: !!timestamp a\n", "The config file {path} is not valid YAML."),
    "binary": (f"{HEAD}seed: !!binary ab\n", "The config file {path} is not valid YAML at line 4."),
    "a set": (f"{HEAD}seed: !!set {{a}}\n", "seed must be a whole number, but is a set."),
    "a private tag": ("pool: !evil p\n", "The config file {path} is not valid YAML at line 1."),
    "nul": ("pool: a\0b\n", "The config file {path} is not valid YAML."),
}


@pytest.mark.parametrize(("text", "problem"), REFUSED.values(), ids=REFUSED)
def test_a_hostile_config_ends_in_one_sentence(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        load_config(path)
    assert caught.value.problem == problem.format(path=path)


@pytest.mark.parametrize(
    "call",
    [
        "!!python/object/apply:os.system ['touch {marker}']",
        "!!python/object/apply:subprocess.check_output [['touch', '{marker}']]",
        "!!python/object/new:os.system ['touch {marker}']",
        "!!python/name:os.system",
        "!!python/module:os",
    ],
)
def test_python_tags_run_nothing(tmp_path: Path, call: str) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "config.yaml"
    path.write_text(f"pool: {call.format(marker=marker)}\n")
    result = curate("run", str(path))
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: The config file {path} is not valid YAML at line 1.")
    assert curate("run", "--set", f"pool={call.format(marker=marker)}").exit_code == 2
    assert not marker.exists()


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 1200, "2024-99-99", "!!int x", "{a: 1, a: 2}"])
def test_hostile_assignments_end_in_one_sentence(value: str) -> None:
    with pytest.raises(InvalidInput, match="is not valid YAML"):
        load_config(None, {}, [f"seed={value}"])


def test_aliases_that_do_not_multiply_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("pool: &place data/x\ntarget: *place\nout: o\n")
    assert load_config(path).target == "data/x"


def test_the_config_of_a_run_folder_is_read_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "part-00000.parquet").touch()
    (tmp_path / "manifest.json").write_text('{"stages": {"complete": {}}}')
    (tmp_path / "config.yaml").write_text(laughs(40, "{{<<: [{}]}}"))
    result = curate("export", str(tmp_path), "--to", "jsonl", "--dest", str(tmp_path / "dest"))
    assert result.exit_code == 2
    assert "uses a merge key at line 2." in result.stderr
