"""Build a `Config` from YAML, flags and `--set`, later sources winning.

Every error names the nested key, what was expected, what was found and, for a misspelt key, the
nearest right one. YAML may come from anywhere: it is read with a safe loader that runs nothing,
multiplies nothing and refuses what it would have to guess.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from curate.config.schema import Config, Section, field_key, number_in_words
from curate.errors import InvalidInput
from curate.files import StrPath

Tree = dict[str, Any]

_LONGEST_NUMBER = 1000
"""Characters of a whole number in YAML, at most."""
_BROKEN = (
    yaml.YAMLError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    TypeError,
    RecursionError,
)
"""What reading YAML raises: besides its own error those of types that a scalar cannot be."""


class _Refused(yaml.constructor.ConstructorError):
    """Valid YAML that a config must not hold; `problem` says what it does."""

    def __init__(self, problem: str, node: yaml.Node) -> None:
        super().__init__(None, None, problem, node.start_mark)


class _Loader(yaml.SafeLoader):
    """The safe loader without what grows on reading (merge keys, long numbers), and without keys
    that repeat, of which one would win in silence.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.tag == "tag:yaml.org,2002:merge":
                raise _Refused("uses a merge key", key)
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _Refused("gives a key for the second time", key)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > _LONGEST_NUMBER:
            raise _Refused(f"has a number of {len(node.value)} characters", node)
        return super().construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def load_config(
    path: StrPath | None = None,
    flags: Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
) -> Config:
    """The resolved `Config`: YAML file < `flags` (dotted keys, None = not given) < `assignments`.

    Args:
        path: a YAML file, or None.
        flags: values by dotted key, such as {"model.name": "tiny"}; paths may be `Path`s.
        assignments: `section.key=value` texts; the value is read as YAML.

    Raises:
        InvalidInput: a file, key or value cannot be used.
    """
    tree = read_yaml(Path(path)) if path is not None else {}
    for key, value in (flags or {}).items():
        if value is not None:
            _assign(tree, key, os.fspath(value) if isinstance(value, os.PathLike) else value)
    for text in assignments:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise InvalidInput(
                f"--set {_shown(text)} has no key=value form.", "Write --set section.key=value."
            )
        _assign(tree, key.strip(), _parse_value(key.strip(), value))
    return config_from_tree(tree)


def read_yaml(path: Path) -> Tree:
    """The mapping in a YAML file.

    Raises:
        InvalidInput: the file is absent, is not YAML, or does not hold a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InvalidInput(
            f"The config file {path} cannot be read.", "Give the path of a YAML file."
        ) from None
    try:
        tree = _load(text)
    except _BROKEN as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        wrong = error.problem if isinstance(error, _Refused) else "is not valid YAML"
        raise InvalidInput(
            f"The config file {path} {wrong}{where}.", "Correct that line."
        ) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InvalidInput(
            f"The config file {path} holds {_kind(tree)}, not a mapping.",
            "Write key: value lines.",
        )
    return tree


def _load(text: str) -> Any:
    return yaml.load(text, _Loader)


def config_from_tree(tree: Mapping[str, Any]) -> Config:
    """Build and check a `Config` from nested mappings.

    Raises:
        InvalidInput: an unknown key, a missing one, or a value of the wrong type or size.
    """
    return typing.cast(Config, _build(Config, tree, ""))


def config_to_tree(config: Section) -> Tree:
    """Nested plain values of a config, keys as in YAML; inverse of `config_from_tree`."""
    tree: Tree = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if isinstance(value, Section):
            value = config_to_tree(value)
        elif isinstance(value, tuple):
            value = list(value)
        tree[field_key(field)] = value
    return tree


def config_to_yaml(config: Config) -> str:
    """The config as commented YAML, every value written out; loads back to an equal config."""
    return "".join(_yaml_lines(config, indent=""))


def _yaml_lines(section: Section, indent: str) -> Iterable[str]:
    for field in dataclasses.fields(section):  # type: ignore[arg-type]
        value = getattr(section, field.name)
        if isinstance(value, Section):
            yield f"\n{field_key(field)}:  # {(type(value).__doc__ or '').splitlines()[0]}\n"
            yield from _yaml_lines(value, indent + "  ")
            continue
        plain = list(value) if isinstance(value, tuple) else value
        text = dump_yaml(plain, default_flow_style=True, width=10**6)
        text = text.removesuffix("\n").removesuffix("...").strip(" \n")
        yield f"{indent}# {field.metadata['doc']}\n{indent}{field_key(field)}: {text}\n"


def dump_yaml(value: Any, **options: Any) -> str:
    """Plain values as YAML; ASCII where it would hold a character that is not seen as it is."""
    text: str = yaml.safe_dump(value, allow_unicode=True, **options)
    if not all(character.isprintable() or character == "\n" for character in text):
        text = yaml.safe_dump(value, **options)
    return text


def _parse_value(key: str, text: str) -> Any:
    try:
        return _load(text)
    except _BROKEN:
        raise InvalidInput(
            f"The value of --set {_shown(f'{key}={text}')} is not valid YAML.",
            "Quote it for YAML.",
        ) from None


def _assign(tree: Tree, dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        branch = tree.setdefault(parent, {})
        if branch is None:
            branch = tree[parent] = {}
        if not isinstance(branch, dict):
            raise InvalidInput(
                f"{dotted} cannot be set: {parent} is {_kind(branch)}, not a section.",
                "Use the keys of a config.yaml that a run has written.",
            )
        tree = branch
    tree[last] = value


def _build(section: type[Section], tree: object, path: str) -> Section:
    if not isinstance(tree, Mapping):
        raise InvalidInput(
            f"{path} must be a section of keys, but is {_kind(tree)}.",
            f"Write the keys of {path} below it.",
        )
    fields = {field_key(field): field for field in dataclasses.fields(section)}  # type: ignore[arg-type]
    for key in tree:
        if key not in fields:
            raise _unknown_key(str(key), path, list(fields))
    types_by_name = typing.get_type_hints(section)
    values: Tree = {}
    for key, field in fields.items():
        nested = f"{path}.{key}" if path else key
        wanted = types_by_name[field.name]
        is_section = isinstance(wanted, type) and issubclass(wanted, Section)
        if key not in tree or (is_section and tree[key] is None):
            if field.default is dataclasses.MISSING and not is_section:
                raise InvalidInput(
                    f"{nested} is missing.", f"Give --{nested} or write {nested} in the config."
                )
            continue
        value = tree[key]
        values[field.name] = (
            _build(wanted, value, nested) if is_section else _convert(value, wanted, nested)
        )
    return section(**values)


def _unknown_key(key: str, path: str, known: list[str]) -> InvalidInput:
    nested = f"{path}.{key}" if path else key
    near = difflib.get_close_matches(key, known, n=1)
    prefix = f"{path}." if path else ""
    hint = f"Did you mean {prefix}{near[0]}?" if near else f"Known keys: {', '.join(known)}."
    return InvalidInput(f"There is no setting {nested}.", hint)


def _convert(value: Any, wanted: Any, path: str) -> Any:
    options = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    if value is None and types.NoneType in options:
        return None
    for kind in options:
        plain = isinstance(value, kind) if isinstance(kind, type) else False
        if plain and (kind is bool or not isinstance(value, bool)):
            return value
        if kind is float and not isinstance(value, bool):
            number = _float_or_none(value)
            if number is not None:
                return number
        if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
            return tuple(_convert(item, str, path) for item in value)
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    expected = next((words[kind] for kind in options if kind in words), "a list of names")
    raise InvalidInput(
        f"{path} must be {expected}, but is {_kind(value)}.", f"Set {path} to {expected}."
    )


def _float_or_none(value: Any) -> float | None:
    """The number meant: YAML 1.1 reads 1 as an integer and 1e-3 as text."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _shown(text: str) -> str:
    """What the user gave as an error repeats it: an address may hold a password."""
    return text if "://" not in text else f"{text.partition('://')[0]}://..."


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'the text "{_shown(value)}"'
    if isinstance(value, int | float):
        return f"the number {number_in_words(value)}"
    return {"list": "a list", "dict": "a mapping", "date": "a date"}.get(
        type(value).__name__, f"a {type(value).__name__}"
    )
