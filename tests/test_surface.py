"""What is public, and that all of it is explained."""

import ast
import importlib
import inspect
import pydoc
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType

import pytest

import headstart
from headstart import config, results


def test_all_is_what_is_public() -> None:
    code = (
        "import headstart, types\n"
        "[getattr(headstart, name) for name in dir(headstart)]\n"
        "names = {n for n, v in vars(headstart).items() if n[0] != '_' and not isinstance(v, types.ModuleType)}\n"
        "print(sorted((names | {'__version__'}) - {'TYPE_CHECKING', 'import_module'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == str(sorted(headstart.__all__))


@pytest.mark.parametrize("name", headstart.__all__)
def test_every_public_name_is_explained(name: str) -> None:
    value = getattr(headstart, name)
    if not isinstance(value, ModuleType):
        assert inspect.getdoc(value)


@pytest.mark.parametrize("name", headstart.__all__)
def test_a_public_name_is_not_hidden_by_the_module_of_its_name(name: str) -> None:
    for path in Path(headstart.__file__).parent.glob("*.py"):
        if path.stem == name:
            importlib.import_module(f"headstart.{name}")
    assert not isinstance(getattr(headstart, name), ModuleType)


def test_every_key_of_the_configuration_is_explained() -> None:
    tree = ast.parse(inspect.getsource(config))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert len(classes) == 8
    num_keys = 0
    for node in classes:
        assert ast.get_docstring(node), node.name
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and not ast.unparse(field.annotation).endswith("Config"):
                num_keys += 1
                explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert explained, f"{node.name}.{ast.unparse(field.target)}"
    assert num_keys >= 35


def test_every_module_begins_with_what_it_owns() -> None:
    paths = sorted(Path(headstart.__file__).parent.rglob("*.py"))
    assert paths
    assert [path.name for path in paths if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_the_package_is_typed() -> None:
    assert (Path(headstart.__file__).parent / "py.typed").is_file()


FUNCTIONS = [name for name in headstart.__all__ if inspect.isfunction(getattr(headstart, name))]
RESULTS = [value for value in vars(results).values() if is_dataclass(value) and isinstance(value, type)]


def section(docstring: str, title: str) -> str:
    """The indented lines below a title such as 'Args:'."""
    found = re.search(rf"^{title}:\n((?:    .*\n?|\n)+)", docstring, re.MULTILINE)
    assert found, f"no section {title}"
    return found[1]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_result_and_exception_of_a_public_function_is_explained(name: str) -> None:
    function = getattr(headstart, name)
    docstring = inspect.getdoc(function) or ""
    explained = re.findall(r"^    (\w+): \S", section(docstring, "Args"), re.MULTILINE)
    assert explained == list(inspect.signature(function).parameters)
    assert section(docstring, "Returns").strip()
    assert "InputError: " in section(docstring, "Raises")
    assert re.search(rf"^    {name} +headstart ", headstart.__doc__ or "", re.MULTILINE)


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: result.__name__)
def test_every_attribute_of_a_result_is_explained(result: type) -> None:
    attributes = section(inspect.getdoc(result) or "", "Attributes")
    assert re.findall(r"^    (\w+): \S", attributes, re.MULTILINE) == [field.name for field in fields(result)]
    for name, value in vars(result).items():
        if name[0] != "_" and (isinstance(value, property) or inspect.isfunction(value)):
            assert inspect.getdoc(value), name


def test_the_page_of_pydoc_begins_with_an_example_and_lists_the_functions() -> None:
    page = pydoc.plain(pydoc.render_doc(headstart))
    first, _, rest = page.partition("PACKAGE CONTENTS")
    assert "headstart.train(" in first
    for name in FUNCTIONS:
        assert re.search(rf"^    {name}\(", rest, re.MULTILINE), f"{name} is not a function of the page"
        assert (inspect.getdoc(getattr(headstart, name)) or "").splitlines()[0] in rest
