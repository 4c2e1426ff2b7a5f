"""Who may import whom, and what the library never touches."""

import ast
import pathlib

import pytest

import tbptt

ROOT = pathlib.Path(tbptt.__file__).parent
TOOLS = ROOT.parent / "tools"
COMMANDS = sorted(path for path in TOOLS.rglob("*.py") if "app.run(main)" in path.read_text())
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")

# Every package may import types, checks, seeds and itself; and beyond that:
TRAINING = {"losses", "optimizers", "state", "streams", "distribution", "variables"}
MAY_IMPORT = {
    "quiet": set(),
    "types": set(),
    "checks": set(),
    "seeds": set(),
    "precision": {"native"},
    "state": set(),
    "rebuild": {"losses"},
    "losses": set(),
    "optimizers": {"native"},
    "variables": set(),
    "distribution": set(),
    "streams": set(),
    "native": {"state"},
    "unroll": {"precision", "state"},
    "layers": {"native", "precision", "rebuild", "unroll", "state"},
    "readouts": {"layers", "losses", "rebuild"},
    "models": {"layers", "losses", "readouts", "rebuild", "unroll", "state"},
    "serving": {
        "native",
        "state",
        "checkpoint",
        "experiment",
        "losses",
        "precision",
        "rebuild",
        "streams",
        "variables",
    },
    "training": TRAINING,
    "checkpoint": {"training", *TRAINING},
    "summaries": {"training", *TRAINING},
    "testing": {"checkpoint", "serving", "training", *TRAINING},
    "experiment": {"checkpoint", "rebuild", "summaries", "training", *TRAINING},
}
FORBIDDEN = ("keras", "tensorflow.python", "tensorflow.compat.v1", "pickle")


def package(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: pathlib.Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_table(path):
    allowed = MAY_IMPORT[package(path)] | {"types", "checks", "seeds", package(path)}
    for name in imported(path):
        if name.startswith("tbptt."):
            assert name.split(".")[1] in allowed, f"{path} may not import {name}"
        if package(path) != "experiment":  # which is where a command line is read
            assert not name.startswith("absl.flags"), f"{path} imports {name}"
        assert not name.startswith(FORBIDDEN), f"{path} imports {name}"


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_commands_leave_it_to_tbptt_to_import_tensorflow_in_silence(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            module = getattr(node, "module", None) or names[0]
            assert module.split(".")[0] != "tensorflow", f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_library_never_prints_and_never_touches_keras_or_v1(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), f"{path}:{node.lineno}"
            assert node.func.id != "print" or package(path) == "experiment", path
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("keras", "v1"), f"{path}:{node.lineno}"


def test_public_names_are_sorted_documented_and_few():
    assert tbptt.__all__ == sorted(tbptt.__all__)
    assert len(tbptt.__all__) < 65
    for name in tbptt.__all__:
        assert getattr(tbptt, name).__doc__, name
