"""Settings: where they come from, what they may be, and what is said when they cannot be used."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curate.config import (
    Config,
    config_from_tree,
    config_to_tree,
    config_to_yaml,
    load_config,
)
from curate.config.schema import BladeConfig, Section, field_key
from curate.errors import InvalidInput

REQUIRED = {"pool": "pool", "target": "target.parquet", "out": "out"}
PIPELINES = sorted((Path(__file__).parents[2] / "pipelines").glob("*.yaml"))


def every_field(section: type[Section] = Config, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(nested key, field, section) of every setting."""
    found = []
    config = config_from_tree(REQUIRED) if section is Config else section()
    for field in dataclasses.fields(section):  # type: ignore[arg-type]
        key = prefix + field_key(field)
        value = getattr(config, field.name)
        if isinstance(value, Section):
            found += every_field(type(value), f"{key}.")
        else:
            found.append((key, field, section))
    return found


FIELDS = every_field()


def numbers(field: Any, whole: bool) -> st.SearchStrategy[Any]:
    limits = field.metadata
    low, high, above = limits["minimum"], limits["maximum"], limits["above"]
    high = min(high, limits["below"])
    if whole:
        low = None if low == -math.inf else int(low)
        high = 2**62 if high == math.inf else int(high)
        return st.integers(low, high)
    return st.floats(
        min_value=None if max(low, above) == -math.inf else max(low, above),
        max_value=None if high == math.inf else high,
        exclude_min=above > -math.inf,
        exclude_max=limits["below"] < math.inf,
        allow_nan=False,
        allow_infinity=False,
    )


TEXTS = st.one_of(
    st.text(),
    st.sampled_from(
        ["", " ", "null", "~", "yes", "1e-3", "0x10", "12:30", "2020-01-01", "# no", "a: b", "- a",
         "...", "foo...", "---", "a\nb", "\n", "tab\there", "trailing ", "é日🙂", "\x85", "\u2028",
         "\ufeff", '"', "'", "[a", "{a", "*a", "&a", "!a", "%a", "@a", "`a", "a\\b", "\x00", "=",
         "<<", "a #b", "\n\na", "a\n", "word " * 40],
    ),
)  # fmt: skip


def values_of(field: Any, section: type[Section]) -> st.SearchStrategy[Any]:
    """Valid values of a setting."""
    kind = str(field.type)
    if field.metadata["choices"]:
        plain: st.SearchStrategy[Any] = st.sampled_from(field.metadata["choices"])
    elif kind.startswith("tuple"):
        plain = st.lists(TEXTS, max_size=3).map(tuple)
    elif kind.startswith("str"):
        plain = TEXTS.filter(bool) if field.name in REQUIRED else TEXTS
    else:
        plain = numbers(field, whole=kind.startswith("int"))
    return st.none() | plain if "None" in kind else plain


@st.composite
def configs(draw: st.DrawFn) -> Config:
    tree: dict[str, Any] = {}
    for key, field, section in FIELDS:
        value = draw(values_of(field, section))
        *parents, last = key.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = value
    blade = tree["blade"]
    if blade["lambda_schedule"] != "constant":
        blade["lambda_end"] = draw(st.floats(1e-300, 1e300))
        blade["lambda"] = draw(st.floats(1e-300, 1e300))
    if tree["granularity"] == "token":
        blade["average"] = "last"
        blade["final"] = "none"
        tree["score_tokens"] = None
    if blade["final"] == "none" or tree["method"] == "rho1":
        blade["round_share"] = draw(st.sampled_from([None, 1.0]))
    return config_from_tree(tree)


def error_of(*arguments: Any, **values: Any) -> tuple[str, str]:
    with pytest.raises(InvalidInput) as caught:
        load_config(*arguments, **values)
    assert str(caught.value) == f"{caught.value.problem} {caught.value.remedy}"
    assert caught.value.exit_code == 2
    return caught.value.problem, caught.value.remedy


def set_error(*assignments: str) -> tuple[str, str]:
    return error_of(None, REQUIRED, assignments)


# Where settings come from.


def test_later_sources_win(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "pool: yaml\ntarget: yaml\nout: yaml\nkeep: 0.3\nmodel:\n  name: small\n  window: 64\n"
    )
    flags = {"target": "flag", "out": "flag", "model.name": "base", "keep": None}
    config = load_config(path, flags, ["out=set", "model.window=128"])
    assert (config.pool, config.target, config.out) == ("yaml", "flag", "set")
    assert (config.model.name, config.model.window, config.keep) == ("base", 128, 0.3)


def test_the_last_assignment_wins() -> None:
    assert load_config(None, REQUIRED, ["seed=1", "seed=2"]).seed == 2


def test_a_section_without_keys_is_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("pool: a\ntarget: b\nout: c\nblade:\nmodel:\n")
    assert load_config(path) == config_from_tree({"pool": "a", "target": "b", "out": "c"})
    assert load_config(path, assignments=["blade.passes=2"]).blade.passes == 2


def test_an_empty_file_is_no_settings(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("# nothing\n")
    assert load_config(path, REQUIRED) == config_from_tree(REQUIRED)


def test_an_assignment_is_read_as_yaml() -> None:
    given = ["metadata_columns=[a, 'b c']", "text_column='1'", "model.window=null", "pool=a=b"]
    config = load_config(None, REQUIRED, given)
    assert config.metadata_columns == ("a", "b c")
    assert (config.text_column, config.model.window, config.pool) == ("1", None, "a=b")


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("2", 2.0), ("0.5", 0.5), ("1E5", 1e5), ("'0.25'", 0.25)]
)
def test_numbers_that_yaml_reads_otherwise(text: str, value: float) -> None:
    found = load_config(None, REQUIRED, [f"train.learning_rate={text}"]).train.learning_rate
    assert isinstance(found, float)
    assert found == value


def test_lambda_is_a_key_though_not_a_python_name() -> None:
    assert load_config(None, REQUIRED, ["blade.lambda=0.5"]).blade.lambda_ == 0.5
    assert config_to_tree(BladeConfig())["lambda"] == 0.0


# What is written out.


def test_every_setting_has_a_doc_on_one_line() -> None:
    for key, field, _ in FIELDS:
        doc = field.metadata["doc"]
        assert doc.strip() == doc != "", key
        assert "\n" not in doc, key


def test_every_setting_and_its_doc_are_written() -> None:
    text = config_to_yaml(config_from_tree(REQUIRED))
    lines = text.splitlines()
    for key, field, _ in FIELDS:
        parts = key.split(".")
        indent = "  " * (len(parts) - 1)
        doc = lines.index(f"{indent}# {field.metadata['doc']}")
        assert lines[doc + 1].startswith(f"{indent}{parts[-1]}: ")
    tree = yaml.safe_load(text)
    assert tree == config_to_tree(config_from_tree(REQUIRED))


@settings(max_examples=40, deadline=None)
@given(config=configs())
def test_what_is_written_loads_back_equal(config: Config) -> None:
    text = config_to_yaml(config)
    assert config_from_tree(yaml.safe_load(text)) == config
    assert config_from_tree(config_to_tree(config)) == config


@settings(max_examples=50, deadline=None)
@given(text=TEXTS)
@example(text="\xa0")  # a space to Python, not to YAML
def test_any_text_loads_back_from_a_file(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    names = {"metadata_columns": [text, "b"], "model": {"name": text}}
    tree = {**REQUIRED, **names, "pool": text or "pool"}  # the empty one is refused
    config = config_from_tree(tree)
    path.write_text(config_to_yaml(config), encoding="utf-8")
    assert load_config(path) == config


# What cannot be used.


def test_unknown_key_with_a_near_one() -> None:
    assert set_error("sed=1") == ("There is no setting sed.", "Did you mean seed?")
    assert set_error("blade.lamda=1") == (
        "There is no setting blade.lamda.",
        "Did you mean blade.lambda?",
    )


def test_unknown_key_without_a_near_one() -> None:
    known = "name, window, window_overlap, vocabulary_size, tokenizer_sample_bytes"
    assert set_error("model.xyzzy=1") == (
        "There is no setting model.xyzzy.",
        f"Known keys: {known}.",
    )


def test_python_name_of_lambda_is_not_a_key() -> None:
    assert set_error("blade.lambda_=1") == (
        "There is no setting blade.lambda_.",
        "Did you mean blade.lambda?",
    )


@pytest.mark.parametrize(
    ("assignment", "expected", "found"),
    [
        ("keep=abc", "a number", 'the text "abc"'),
        ("keep=[1]", "a number", "a list"),
        ("keep=true", "a number", "true"),
        ("keep=", "a number", "nothing"),
        ("seed=1.5", "a whole number", "the number 1.5"),
        ("seed='1'", "a whole number", 'the text "1"'),
        ("seed=false", "a whole number", "false"),
        ("model.window=abc", "a whole number", 'the text "abc"'),
        ("pool=3", "text", "the number 3"),
        ("pool=", "text", "nothing"),
        ("text_column={a: b}", "text", "a mapping"),
        ("text_column=2020-01-01", "text", "a date"),
        ("metadata_columns=source", "a list of names", 'the text "source"'),
        ("metadata_columns=[1]", "text", "the number 1"),
    ],
)
def test_wrong_type(assignment: str, expected: str, found: str) -> None:
    key = assignment.partition("=")[0]
    assert set_error(assignment) == (
        f"{key} must be {expected}, but is {found}.",
        f"Set {key} to {expected}.",
    )


@pytest.mark.parametrize(
    ("assignment", "wanted", "found"),
    [
        ("keep=0", "in (0, 1]", "0"),
        ("keep=1.5", "in (0, 1]", "1.5"),
        ("keep=-1", "in (0, 1]", "-1"),
        ("keep=.nan", "in (0, 1]", "nan"),
        ("keep=.inf", "in (0, 1]", "inf"),
        ("keep=nan", "in (0, 1]", "nan"),
        ("seed=-1", "in [0, 9.22337e+18]", "-1"),
        ("model.window=7", "of at least 8", "7"),
        ("model.vocabulary_size=256", "of at least 257", "256"),
        ("train.learning_rate=0", "above 0", "0"),
        ("train.learning_rate=.inf", "above 0", "inf"),
        ("train.beta1=1", "in [0, 1)", "1"),
        ("blade.lambda=-0.1", "of at least 0", "-0.1"),
        ("blade.lambda=.inf", "of at least 0", "inf"),
        ("blade.mixture_kept_share=0", "in (0, 1]", "0"),
    ],
)
def test_out_of_range(assignment: str, wanted: str, found: str) -> None:
    key = assignment.partition("=")[0]
    assert set_error(assignment) == (
        f"{key} must be a number {wanted}, but is {found}.",
        f"Set {key} to a number {wanted}.",
    )


@pytest.mark.parametrize("key", ["keep", "seed", "blade.lambda"])
def test_a_number_beyond_all_floats(key: str) -> None:
    problem, _ = set_error(f"{key}={'9' * 400}")
    assert problem.startswith(f"{key} must be a")


def test_choice() -> None:
    assert set_error("method=blad") == (
        "method must be one of blade, color, rho1, dsir, classifier, perplexity, random, but is "
        "blad.",
        "Set method to one of them.",
    )
    assert set_error("blade.control=x")[0] == (
        "blade.control must be one of proxy, lookahead, but is x."
    )


@pytest.mark.parametrize("key", ["pool", "target", "out"])
def test_missing(key: str) -> None:
    given = {one: value for one, value in REQUIRED.items() if one != key}
    assert error_of(None, given) == (
        f"{key} is missing.",
        f"Give --{key} or write {key} in the config.",
    )


@pytest.mark.parametrize(
    ("text", "kind"), [("- a\n", "a list"), ("word\n", 'the text "word"'), ("3", "the number 3")]
)
def test_a_file_that_is_not_a_mapping(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert error_of(path) == (
        f"The config file {path} holds {kind}, not a mapping.",
        "Write key: value lines.",
    )


def test_invalid_yaml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("pool: a\ntarget: b\nout: [c\nkeep: 1\n")
    assert error_of(path) == (
        f"The config file {path} is not valid YAML at line 4.",
        "Correct that line.",
    )


def test_yaml_cannot_build_objects(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"pool: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    assert error_of(path)[0] == f"The config file {path} is not valid YAML at line 1."
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [None, b"\xff\xfe\xff"])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_bytes(content)
    assert error_of(path) == (
        f"The config file {path} cannot be read.",
        "Give the path of a YAML file.",
    )


@pytest.mark.parametrize("text", ["keep", "", "=1", " =1"])
def test_an_assignment_without_key_and_value(text: str) -> None:
    assert set_error(text) == (
        f"--set {text} has no key=value form.",
        "Write --set section.key=value.",
    )


def test_an_assignment_that_is_not_yaml() -> None:
    assert set_error("metadata_columns=[a") == (
        "The value of --set metadata_columns=[a is not valid YAML.",
        "Quote it for YAML.",
    )


def test_a_value_where_a_section_is() -> None:
    assert set_error("model=tiny") == (
        'model must be a section of keys, but is the text "tiny".',
        "Write the keys of model below it.",
    )


def test_a_section_where_a_value_is() -> None:
    assert error_of(None, {**REQUIRED, "model.name": "tiny"}, ["model.name.x=1"]) == (
        'model.name.x cannot be set: name is the text "tiny", not a section.',
        "Use the keys of a config.yaml that a run has written.",
    )


@pytest.mark.parametrize("schedule", ["linear", "geometric"])
def test_a_schedule_needs_an_end(schedule: str) -> None:
    assert set_error("blade.lambda=1", f"blade.lambda_schedule={schedule}") == (
        f"blade.lambda_schedule is {schedule}, but lambda_end is not set.",
        "Set blade.lambda_end to the value at the last sync.",
    )


@pytest.mark.parametrize(("first", "last"), [("0", "1"), ("0.5", "0")])
def test_a_geometric_schedule_needs_both_above_zero(first: str, last: str) -> None:
    given = [f"blade.lambda={first}", f"blade.lambda_end={last}"]
    assert set_error(*given, "blade.lambda_schedule=geometric") == (
        "A geometric schedule needs blade.lambda and blade.lambda_end above 0, "
        f"but they are {first} and {last}.",
        "Set both above 0, or use blade.lambda_schedule=linear.",
    )


def test_a_linear_schedule_may_start_at_zero() -> None:
    given = ["blade.lambda_end=1", "blade.lambda_schedule=linear"]
    assert load_config(None, REQUIRED, given).blade.lambda_ == 0


def test_configs_are_frozen_and_keyword_only() -> None:
    config = config_from_tree(REQUIRED)
    for section in (config, config.model, config.compute, config.train, config.blade, config.write):
        name = dataclasses.fields(section)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(section, name, "other")
    with pytest.raises(TypeError):
        Config("pool", "target", "out")  # type: ignore[misc]
    with pytest.raises(InvalidInput):
        dataclasses.replace(config, keep=2.0)


# The recipes.


def test_there_are_recipes() -> None:
    assert {path.name for path in PIPELINES} >= {"blade.yaml", "random.yaml", "demo.yaml"}


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.name)
def test_recipe_loads_and_sets_the_paths(path: Path) -> None:
    load_config(path)
    tree = yaml.safe_load(path.read_text())
    assert {"pool", "target", "out"} <= tree.keys()


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.name)
def test_recipe_explains_every_value(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    silent = [
        f"{path.name}:{number + 1}: {line}"
        for number, line in enumerate(lines)
        if re.match(r"\s*[\w]+:\s*[^\s#]", line)
        and "#" not in line
        and not lines[number - 1].lstrip().startswith("#")
    ]
    assert silent == []
