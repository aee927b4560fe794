"""Imports go one way."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import headstart

ROOT = Path(headstart.__file__).parent
HEAVY = {"torch", "torchvision", "accelerate", "datasets", "evaluate", "numpy", "PIL", "pyarrow", "matplotlib"}


def module_name(path: Path) -> str:
    parts = ("headstart", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


@cache
def parsed(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text())


def statements(body: list[ast.stmt], *, inside_functions: bool) -> Iterator[ast.stmt]:
    """All statements that run, on import or at all; not those for type checkers."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not inside_functions:
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        for part in ("body", "orelse", "finalbody"):
            yield from statements(getattr(node, part, []), inside_functions=inside_functions)
        for part in ("handlers", "cases"):
            for branch in getattr(node, part, []):
                yield from statements(branch.body, inside_functions=inside_functions)


@cache
def imports(name: str, *, inside_functions: bool) -> frozenset[str]:
    """Full names of the modules that a module imports: ours to the file, others to the package."""
    found = set()
    for node in statements(parsed(name).body, inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            assert node.module is not None
            found |= {
                inner if (inner := f"{node.module}.{alias.name}") in FILES else node.module for alias in node.names
            }
    return frozenset(module if module.split(".")[0] == "headstart" else module.split(".")[0] for module in found)


def reaches(name: str, *, inside_functions: bool) -> set[str]:
    """Everything that a module imports through others of ours."""
    seen: set[str] = set()
    todo = [name]
    while todo:
        for module in imports(todo.pop(), inside_functions=inside_functions) - seen:
            seen.add(module)
            if module in FILES and module != "headstart":  # the package only names what is public
                todo.append(module)
    return seen


def test_the_files_are_seen() -> None:
    assert {"headstart", "headstart.cli", "headstart.training", "headstart.data.manifest"} <= FILES.keys()
    assert len(FILES) >= 25


def test_imports_are_seen_at_the_top_and_in_functions() -> None:
    assert {"torch", "headstart.data.manifest"} <= imports("headstart.training", inside_functions=False)
    assert "headstart.pictures" in imports("headstart.training", inside_functions=True)
    assert "headstart.pictures" not in imports("headstart.training", inside_functions=False)
    assert "headstart.checkpoint" in imports("headstart.training", inside_functions=False)
    assert "headstart.model" in reaches("headstart.predict", inside_functions=True)


@pytest.mark.parametrize(
    "name", ["config", "errors", "parsing", "cli", "run_cli", "data_cli", "machine_cli", "serve.options", "schedule"]
)
def test_what_help_needs_imports_nothing_heavy(name: str) -> None:
    assert reaches(f"headstart.{name}", inside_functions=False) & HEAVY == set()


def test_the_package_imports_nothing_heavy() -> None:
    direct = imports("headstart", inside_functions=False)
    assert (
        direct | {other for name in direct & FILES.keys() for other in reaches(name, inside_functions=False)}
    ) & HEAVY == set()


RULES = {
    "headstart.data.": {
        "headstart.training",
        "headstart.evaluate",
        "headstart.predict",
        "headstart.model",
        "headstart.inspection",
        "headstart.page",
        "headstart.cli",
    },
    "headstart.export.": {"headstart.training", "headstart.evaluate", "headstart.checkpoint", "headstart.cli"},
    "headstart.predict": {"headstart.training", "headstart.evaluate", "headstart.checkpoint", "headstart.cli"},
    "headstart.evaluate": {"headstart.training", "headstart.checkpoint", "headstart.cli"},
    "headstart.training": {"headstart.predict", "headstart.cli"},
    "headstart.model": {"headstart.data", "headstart.training", "headstart.strategy", "headstart.config"},
    "headstart.report.": {"headstart.training", "headstart.probe_run", "headstart.predict", "headstart.cli"},
    "headstart.run_files": {"torch", "headstart.artifacts", "headstart.facts", "headstart.compare"},
    "headstart.compare": {"torch", "headstart.artifacts", "headstart.facts"},
    "headstart.facts": {"headstart.training", "headstart.probe_run", "headstart.report", "headstart.card"},
    "headstart.watch": {"torch", "accelerate", "headstart.training", "headstart.artifacts"},
    "headstart.progress": {"torch", "headstart.watch", "headstart.training"},
    "headstart.loss": {"headstart.data", "headstart.training", "headstart.probe_run"},
    "headstart.bench_data": {"headstart.cli", "headstart.predict"},
    "headstart.serve": {"headstart.training", "headstart.evaluate", "headstart.checkpoint", "headstart.cli"},
    "headstart.gradcam": {"headstart.predict", "headstart.model", "headstart.data"},
    "headstart.schedule": {"headstart.config", "headstart.training"},
    "headstart.probe_run": {"headstart.training", "headstart.cli"},
    "headstart.solvers": {"headstart.probe_run", "headstart.training"},
    "headstart.bank_data": {"headstart.solvers", "headstart.probe_run", "headstart.training"},
    "headstart.features": {"headstart.extract", "headstart.probe_run", "headstart.data", "headstart.model"},
    "headstart.trunk": {"headstart.model", "headstart.config", "headstart.features"},
    "headstart.companion": {"headstart.artifacts", "headstart.runtime", "headstart.evaluate"},
    "headstart.noise": {"headstart.data", "headstart.inspection", "headstart.config"},
    "headstart.page": {"headstart.inspection", "headstart.probe_run"},
    "headstart.inspection": {"headstart.training", "headstart.cli"},
    "headstart.metrics": {"headstart.evaluate", "headstart.training"},
    "headstart.record": {"headstart.training", "headstart.predict", "headstart.cli"},
    "headstart.run_cli": {"headstart.training", "headstart.probe_run", "headstart.cli"},
}


@pytest.mark.parametrize("prefix", RULES)
def test_a_layer_never_reaches_one_above_it(prefix: str) -> None:
    names = [name for name in FILES if name.startswith(prefix)]
    assert names
    for name in names:
        assert reaches(name, inside_functions=True) & RULES[prefix] == set(), name


def test_a_run_on_the_bank_does_without_the_slow_libraries() -> None:
    slow = {"torchvision", "datasets", "evaluate", "matplotlib"}
    assert reaches("headstart.probe_run", inside_functions=False) & slow == set()
    assert reaches("headstart.companion", inside_functions=True) & {"torch", "accelerate", "torchvision"} == set()
    assert reaches("headstart.probe", inside_functions=True) & HEAVY == {"numpy"}


def test_a_folder_without_near_copies_is_checked_without_torch() -> None:
    for name in ("inspection", "page", "noise", "data.check", "data.fixes"):
        assert "torch" not in reaches(f"headstart.{name}", inside_functions=False), name


def test_no_file_is_named_for_nothing() -> None:
    names = {name.rsplit(".", 1)[-1] for name in FILES}
    assert names & {"utils", "util", "common", "base", "helpers", "helper", "misc", "core", "types"} == set()


def test_only_the_command_line_ends_the_process() -> None:
    for name in FILES:
        exits = [node for node in ast.walk(parsed(name)) if isinstance(node, ast.Name | ast.Attribute)
                 and ast.unparse(node) in ("sys.exit", "exit")]  # fmt: skip
        assert not exits or name == "headstart.cli", name
