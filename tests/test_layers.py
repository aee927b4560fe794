"""The order of the packages, and what may be imported where."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import headstart

ROOT = Path(headstart.__file__).parent
HEAVY = {"torch", "torchvision", "accelerate", "datasets", "evaluate", "numpy", "PIL", "pyarrow"}

TOP = {
    "backbones",
    "config",
    "config_io",
    "config_schema",
    "errors",
    "files",
    "launcher",
    "wording",
    "spreadsheet",
    "arrow",
    "html",
    "messages",
    "results",
    "tensor_file",
}
"""Single files that every package may use."""
ORDER = [
    "top",
    "runtime",
    "data",
    "data.sources",
    "model",
    "recipe",
    "evaluation",
    "features",
    "runs",
    "data_doctor",
    "report",
    "training",
    "selection",
    "predict",
    "exporters",
    "serve",
    "diagnostics",
    "api",
    "demo",
    "cli",
]
"""A file imports only from its own package and those before it, lazy imports included."""


def module_name(path: Path) -> str:
    parts = ("headstart", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def package_of(name: str) -> str:
    if name == "headstart":
        return "api"
    inside = name.removeprefix("headstart.")
    if inside == "__main__":
        return "cli"
    found = ["top"] if inside in TOP else [p for p in ORDER if inside == p or inside.startswith(f"{p}.")]
    assert found, f"{name} is in no package of the list"
    return max(found, key=len)


@cache
def parsed(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text())


def statements(body: list[ast.stmt], *, inside_functions: bool, types: bool = False) -> Iterator[ast.stmt]:
    """All statements that run, on import or at all. types: those for type checkers as well."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not inside_functions:
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not types:
            continue
        yield node
        for part in ("body", "orelse", "finalbody"):
            yield from statements(getattr(node, part, []), inside_functions=inside_functions, types=types)
        for part in ("handlers", "cases"):
            for branch in getattr(node, part, []):
                yield from statements(branch.body, inside_functions=inside_functions, types=types)


@cache
def imports(name: str, *, inside_functions: bool, types: bool = False) -> frozenset[str]:
    """Full names of the modules that a module imports: headstart's to the file, others to the package."""
    found = set()
    for node in statements(parsed(name).body, inside_functions=inside_functions, types=types):
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
    """Everything that a module imports, directly or through other modules of headstart."""
    seen: set[str] = set()
    todo = [f"headstart.{name}"]
    while todo:
        for module in imports(todo.pop(), inside_functions=inside_functions) - seen:
            seen.add(module)
            if module in FILES and module != "headstart":  # the package only re-exports the public interface
                todo.append(module)
    return seen


def test_the_files_are_seen() -> None:
    assert {"headstart", "headstart.cli.main", "headstart.training.loop", "headstart.data.manifest"} <= FILES.keys()
    assert len(FILES) >= 100


def test_imports_are_seen_at_the_top_and_in_functions() -> None:
    run = "headstart.training.train_network"
    assert {"torch", "headstart.data.manifest"} <= imports("headstart.training.image_data", inside_functions=False)
    assert "headstart.report.command" in imports("headstart.training.finish", inside_functions=True)
    assert "headstart.report.command" not in imports("headstart.training.finish", inside_functions=False)
    assert "headstart.training.checkpoint" in imports(run, inside_functions=False)
    assert "headstart.model.network" in reaches("predict.predictor", inside_functions=True)
    assert "accelerate" not in imports("headstart.model.weights", inside_functions=False)
    assert "accelerate" in imports("headstart.model.weights", inside_functions=False, types=True)


def test_every_file_is_in_one_package_and_every_package_has_files() -> None:
    assert {package_of(name) for name in FILES} == set(ORDER)
    assert {name for name in FILES if package_of(name) == "top"} == {f"headstart.{name}" for name in TOP}


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_only_from_packages_before_its_own(name: str) -> None:
    """Imports for type checkers included."""
    own = ORDER.index(package_of(name))
    ours = {
        module
        for module in imports(name, inside_functions=True, types=True)
        if module.split(".")[0] == "headstart" and module != name
    }
    assert ours <= FILES.keys(), "there are no such modules"
    assert {module for module in ours if ORDER.index(package_of(module)) > own} == set()


def test_no_import_cycle() -> None:
    """Lazy imports included; an import for type checkers alone makes no cycle."""
    graph = {name: imports(name, inside_functions=True) & FILES.keys() - {"headstart"} for name in FILES}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_packages_are_a_docstring_only() -> None:
    for name, path in FILES.items():
        if path.name == "__init__.py" and name != "headstart":
            assert [type(node) for node in parsed(name).body] == [ast.Expr], name


def test_no_package_or_file_at_the_top_has_the_name_of_a_public_function() -> None:
    """Importing headstart.train would put the module in the place of the function."""
    public = {*headstart.__all__, "train", "load", "evaluate", "compare", "verify", "export", "check_data"}
    assert public & {name.split(".")[1] for name in FILES if name != "headstart"} == set()


@pytest.mark.slow
def test_public_names_stay_what_they_are_after_every_submodule_was_imported_and_can_be_called_twice() -> None:
    script = (
        "import importlib, sys, headstart\n"
        "before = {name: getattr(headstart, name) for name in headstart.__all__ if name != '__version__'}\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "for name, value in before.items():\n"
        "    assert callable(value) and getattr(headstart, name) is value, name\n"
        "calls = {'train': (headstart.RunConfig(),), 'load': ('gone',), 'evaluate': ('gone', 'gone'),\n"
        "    'compare': ('gone', 'lost'), 'verify': ('gone',), 'export': ('gone', 'pt2', 'm.pt2'),\n"
        "    'check_data': ('gone',), 'choose': ('gone',)}\n"
        "functions = {name for name, value in before.items() if not isinstance(value, type)}\n"
        "assert functions == calls.keys(), functions ^ calls.keys()\n"
        "for name, arguments in [*calls.items()] * 2:\n"
        "    try:\n"
        "        getattr(headstart, name)(*arguments)\n"
        "    except headstart.InputError as mistake:\n"
        "        print(name, mistake)\n"
        "    else:\n"
        "        raise AssertionError(name)\n"
    )
    names = [name for name in FILES if name != "headstart.__main__"]
    command = [sys.executable, "-c", script, *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 16


@pytest.mark.parametrize("name", sorted(TOP))
def test_files_at_the_top_need_no_torch(name: str) -> None:
    assert reaches(name, inside_functions=True) & {"torch", "torchvision", "accelerate", "datasets"} == set()


@pytest.mark.parametrize(
    "name",
    ["config", "config_io", "config_schema", "errors", "wording", "recipe.schedule", "results", "api", "demo"]
    + [f"cli.{name}" for name in ("main", "options", "output", "train", "runs", "data", "machine", "predict", "serve")]
    + ["cli.print_results", "cli.demo", "cli.shell"],
)
def test_what_help_needs_imports_nothing_heavy(name: str) -> None:
    assert reaches(name, inside_functions=False) & HEAVY == set()


def test_the_package_imports_nothing_heavy() -> None:
    direct = imports("headstart", inside_functions=False)
    ours = {name.removeprefix("headstart.") for name in direct & FILES.keys()}
    assert (direct | {other for name in ours for other in reaches(name, inside_functions=False)}) & HEAVY == set()


NEVER = {
    "model.build": {"headstart.config", "headstart.data", "torchvision"},
    "model.forward": {"headstart.config", "headstart.data", "torchvision"},
    "backbones": {"torch", "timm"},
    "model.inspect_command": {"torch", "numpy", "safetensors"},
    "model.gradcam": {"headstart.model.network", "headstart.data"},
    "recipe.loss": {"headstart.data"},
    "recipe.schedule": {"headstart.config"},
    "evaluation.metrics": {"headstart.evaluation.predictions"},
    "features.bank": {"headstart.data", "headstart.model", "headstart.features.extraction"},
    "runs.files": {"torch", "headstart.model", "headstart.runs.finished_run"},
    "runs.progress": {"torch", "headstart.runs.watch"},
    "runs.watch": {"torch", "accelerate", "headstart.model"},
    "data_doctor.label_noise": {"headstart.config", "headstart.data"},
    "data_doctor.page": {"headstart.data_doctor.command"},
    "report.comparison": {"torch", "headstart.model", "headstart.runs.finished_run"},
    "training.train_head": {"headstart.training.train_network"},
    "predict": {"headstart.training", "headstart.evaluation"},
    "exporters": {"headstart.training", "headstart.evaluation"},
    "serve": {"headstart.training", "headstart.evaluation"},
    "diagnostics.bench_input": {"headstart.predict"},
}
"""What else a module, or a package, does without: the order would allow these."""


@pytest.mark.parametrize("prefix", NEVER)
def test_a_module_does_without(prefix: str) -> None:
    names = [inside for name in FILES if f"{(inside := name[10:])}.".startswith(f"{prefix}.")]
    assert names
    for name in names:
        found = reaches(name, inside_functions=True)
        assert {f for f in found if any(f"{f}.".startswith(f"{other}.") for other in NEVER[prefix])} == set(), name


def test_a_run_on_cached_features_does_without_the_slow_libraries() -> None:
    slow = {"torchvision", "datasets", "evaluate"}
    assert reaches("training.train_head", inside_functions=False) & slow == set()
    assert reaches("features.logistic_regression", inside_functions=True) & HEAVY == {"numpy"}


def test_no_command_imports_the_evaluate_library() -> None:
    """Importing it takes seconds. The classes for its users wrap the functions that the commands call."""
    assert {name for name in FILES if "evaluate" in imports(name, inside_functions=True)} == {
        "headstart.evaluation.evaluate_metrics"
    }
    assert not [
        name for name in FILES if "headstart.evaluation.evaluate_metrics" in imports(name, inside_functions=True)
    ]


def test_a_folder_without_near_copies_is_checked_without_torch() -> None:
    for name in ("command", "page", "label_noise", "check", "fixes"):
        assert "torch" not in reaches(f"data_doctor.{name}", inside_functions=False), name


def test_no_file_is_named_for_nothing() -> None:
    names = {name.rsplit(".", 1)[-1] for name in FILES}
    assert names & {"utils", "util", "common", "base", "helpers", "helper", "misc", "core", "types"} == set()


def test_only_the_command_line_ends_the_process() -> None:
    for name in FILES:
        exits = [
            node
            for node in ast.walk(parsed(name))
            if isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) in ("sys.exit", "exit")
        ]
        assert not exits or name == "headstart.cli.main", name
