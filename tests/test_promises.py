"""What the project promises about its own code, held against the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from run_helpers import Run, environment, shared_run

import curate

PACKAGE = Path(curate.__file__).parent
ROOT = Path(__file__).parents[1]
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

ORDER = [
    "read", "train", "score", "select", "log", "write", "verification", "pipeline", "evaluation",
    "unexpected", "cli",
]  # fmt: skip
"""A room imports from those before it. `write` draws the card and the report from the log."""
SHARED = {"config", "errors", "records", "files", "noise", "refusal", "stop", "clock"}
"""Rooms that every other may import."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def public(node: ast.AST, inside: str = "") -> list[tuple[str, Definition]]:
    """(name, definition) of every public function, class and method in a module."""
    found: list[tuple[str, Definition]] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition) and not child.name.startswith("_"):
            found.append((inside + child.name, child))
            if isinstance(child, ast.ClassDef):
                found += public(child, f"{child.name}.")
    return found


PUBLIC = [
    (f"{name_of(path)}:{name}", node) for path, tree in TREES.items() for name, node in public(tree)
]


def room(module: str) -> str:
    """The folder or module right under curate that a dotted name lies in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(path: Path) -> set[str]:
    """Rooms of curate that a file imports, at its top or in a function."""
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} imports relatively"
            found |= (
                {f"curate.{alias.name}" for alias in node.names}
                if node.module == "curate"
                else {str(node.module)}
            )
    return {room(module) for module in found if module.split(".")[0] == "curate"} - {""}


def test_no_file_is_longer_than_500_lines() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def test_every_module_has_a_docstring() -> None:
    assert [name_of(path) for path, tree in TREES.items() if not ast.get_docstring(tree)] == []


def test_every_public_name_has_a_docstring() -> None:
    assert len(PUBLIC) > 100
    assert [name for name, node in PUBLIC if not ast.get_docstring(node)] == []


def test_every_function_is_annotated() -> None:
    bare = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            given = node.args
            every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            missing = [
                one.arg
                for one in every
                if one is not None and one.annotation is None and one.arg not in ("self", "cls")
            ]
            if missing or node.returns is None:
                bare.append(f"{name_of(path)}:{node.name}")
    assert bare == []


def test_the_module_map_names_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("| `")]
    named = {line.split("|")[1].strip(" `").rstrip("/") for line in table}
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders - named == set()
    modules = {path.name for path in PACKAGE.glob("*.py")}
    assert {name for name in named if name not in folders} <= modules


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    mine = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    used = imports(path) - {mine}
    if mine == "__init__":
        return
    if mine in SHARED:
        assert used <= {"errors", "files", "records", "noise", "refusal"}
        return
    assert used <= SHARED | set(ORDER[: ORDER.index(mine)])


def test_the_order_is_that_of_the_architecture() -> None:
    """docs/architecture.md must tell the order that the imports have."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    told = text.partition("One direction of flow: ")[2].partition(".")[0]
    stages = [word.strip() for word in told.replace(" and ", ", ").split(",") if word.strip()]
    assert stages == ORDER[: len(stages)]


def test_public_names_can_be_imported() -> None:
    for name in curate.__all__:
        assert getattr(curate, name) is not None
    with pytest.raises(AttributeError, match="module 'curate' has no attribute 'nothing'"):
        _ = curate.nothing  # type: ignore[attr-defined]


LOADED = "import sys; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"


def loaded_after(program: str, cwd: Path) -> str:
    """Which of the heavy libraries a program has imported when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{LOADED}"],
        cwd=cwd, env=environment(), capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stdout.splitlines()[-1]


def test_asking_the_log_does_not_load_torch(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    run: Run = shared_run(tmp_path_factory)
    ask = (
        "from pathlib import Path\nimport curate, curate.log.query, curate.config\n"
        f"curate.summary(Path({str(run.out)!r}))\n"
        "from curate.cli import main\n"
        "for more in ([], ['--sql', 'FROM kept'], ['--why', '0:1']):\n"
        f"    main(['log', {str(run.out)!r}, *more], standalone_mode=False)\n"
    )
    assert loaded_after(ask, tmp_path) == "[]"


def test_help_does_not_load_torch(tmp_path: Path) -> None:
    program = (
        "from curate.cli import main\n"
        "for verb in ('run', 'log', 'export'):\n"
        "    main([verb, '--help'], standalone_mode=False)\n"
    )
    assert loaded_after(program, tmp_path) == "[]"
