"""What contributors rely on: the files that CONTRIBUTING.md names, the index of benchmarks, the templates."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from support import REPOSITORY

import headstart

SOURCES = Path(headstart.__file__).parent
BENCHMARKS = sorted(path for path in (REPOSITORY / "benchmarks").iterdir() if path.suffix in (".py", ".mjs"))
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "benchmarks/README.md")
FORMS = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_the_files_that_contributing_names_exist() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(
        re.findall(r"`((?:src|tests|scripts|benchmarks|docs)/[A-Za-z0-9_./]*|[A-Za-z_]+\.(?:toml|txt|md|sh))`", text)
    )
    golden = {f"tests/golden/{name}" for name in named if name.endswith(".txt") and name != "constraints.txt"}
    named = {name for name in named if "NAME" not in name and f"tests/golden/{name}" not in golden}
    assert len(named) >= 15
    assert len(golden) == 3
    assert [name for name in sorted(named | golden) if not (REPOSITORY / name).exists()] == []


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("data/sources/open.py", "_open"),
        ("data/source.py", "Source"),
        ("exporters/formats.py", "_ALL"),
        ("recipe/optimizer.py", "build_optimizer"),
        ("cli/main.py", "_FILES"),
    ],
)
def test_the_places_that_contributing_names_exist(file: str, name: str) -> None:
    assert name in defined_in(SOURCES / file)
    assert f"`{name}`" in (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_to_files(page: str) -> None:
    path = REPOSITORY / page
    links = re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def test_the_dockerfile_copies_files_that_exist_and_what_the_package_is_built_from() -> None:
    text = (REPOSITORY / "examples" / "Dockerfile").read_text(encoding="utf-8")
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", text, flags=re.MULTILINE) for name in line.split()}
    assert [name for name in sorted(copied) if not (REPOSITORY / name).exists()] == []
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {project["project"]["readme"], "LICENSE", "src", *wheel["force-include"]}
    assert needed | {"pyproject.toml", "constraints.txt"} <= copied


def test_every_benchmark_is_in_the_index_once() -> None:
    text = (REPOSITORY / "benchmarks" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \| ([^|]*)\|$", text, flags=re.MULTILINE)
    assert sorted(name for name, *_ in rows) == [path.name for path in BENCHMARKS]
    assert {time for _, _, time, _ in rows} <= {"seconds", "minutes", "hours", "-"}
    for name, _, _, quoted in rows:
        for link in re.findall(r"\((\.\./[^)]+)\)", quoted):
            assert f"benchmarks/{name}" in (REPOSITORY / "benchmarks" / link).read_text(encoding="utf-8"), link


@pytest.mark.parametrize("path", [path for path in BENCHMARKS if path.suffix == ".py"], ids=lambda path: path.name)
def test_what_a_benchmark_imports_from_headstart_exists(path: Path) -> None:
    """Read, not imported: most of them need torch, and some an extra."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    missing = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "headstart"
        for alias in node.names
        if not exists(node.module or "", alias.name)
    ]
    assert missing == []


def exists(module: str, name: str) -> bool:
    place = SOURCES.joinpath(*module.split(".")[1:])
    if place.is_dir():
        return any((place / found).exists() for found in (f"{name}.py", name)) or name in defined_in(
            place / "__init__.py"
        )
    return place.with_suffix(".py").is_file() and name in defined_in(place.with_suffix(".py"))


def defined_in(path: Path) -> set[str]:
    """Names that a file defines, assigns or imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return names


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.name)
def test_an_issue_form_is_valid(form: Path) -> None:
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    if form.stem == "config":
        assert "security/advisories" in content["contact_links"][0]["url"]
        return
    assert content["name"]
    assert content["description"]
    ids = [field["id"] for field in content["body"] if field["type"] != "markdown"]
    assert len(ids) == len(set(ids)) >= 3
    assert all(field["attributes"]["label"] for field in content["body"] if field["type"] != "markdown")


def test_a_bug_report_asks_for_the_output_of_doctor() -> None:
    assert "headstart doctor" in (REPOSITORY / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8")


def test_the_hook_before_a_commit_calls_the_check_script() -> None:
    repos = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    (hook,) = [hook for repo in repos for hook in repo["hooks"]]
    assert hook["entry"] == "scripts/check"
    assert (REPOSITORY / hook["entry"]).is_file()
    assert re.search(hook["files"], "src/headstart/config.py")
    assert not re.search(hook["files"], "README.md")


def test_citation_and_package_agree() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["version"] == headstart.__version__
    assert citation["license"] == project["license"]
    assert citation["repository-code"] == project["urls"]["Source"]
    assert citation["authors"] == [{"name": project["authors"][0]["name"]}]
