"""README and docs: links, generated pages, and the commands and Python code, which run on a few drawn images.

A block is not run if the line above it is `<!-- not run by the tests: REASON -->`.
"""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import REPOSITORY
from support.images import draw

from headstart.cli.main import COMMANDS

DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]
GENERATED = {"configuration.md", "commands.md"}  # tables and --help
NOT_RUN = re.compile(r"<!-- not run by the tests: (.+) -->")
RUN_PYTHON = ("README.md", "docs/reference/python.md", "docs/tutorial/first_classifier.md")
# put in front of the options of a page, which take precedence
SMALL = "--model.weights bundled --data.image_size 32 --data.num_workers 0 --train.epochs 1 --train.batch_size 8"


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    not_run: str | None  # the reason


def blocks(page: Path) -> list[Block]:
    found = re.finditer(r"(?:^(<!--[^\n]*-->)\n)?^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [
        Block(block[2], block[3], reason[1] if block[1] and (reason := NOT_RUN.fullmatch(block[1])) else None)
        for block in found
    ]


def to_run(page: Path) -> Iterator[Block]:
    for block in blocks(page):
        if block.not_run is None and (
            block.language == "bash" or (block.language == "python" and name_of(page) in RUN_PYTHON)
        ):
            yield block


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", without_code(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


class TestPages:
    @pytest.mark.parametrize("page", [*PAGES, REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md"], ids=name_of)
    def test_relative_links_and_anchors_lead_somewhere(self, page) -> None:
        for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target

    @pytest.mark.parametrize("page", [*PAGES, REPOSITORY / "CHANGELOG.md"], ids=name_of)
    def test_text_is_wrapped_at_100_columns(self, page) -> None:
        if page.name in GENERATED:
            return
        for line in without_code(page).splitlines():
            assert len(line) <= 100 or line.startswith("|"), line

    def test_the_index_lists_every_page(self) -> None:
        index = (DOCS / "index.md").read_text(encoding="utf-8")
        linked = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)#]+\.md)\)", index)}
        assert linked == {page for page in DOCS.rglob("*.md") if page.name != "index.md"}

    def test_pages_that_the_source_names_exist(self) -> None:
        for file in [*(REPOSITORY / "src").rglob("*.py"), *(REPOSITORY / "configs").glob("*.yaml")]:
            for page in re.findall(r"(?<![\w/.])docs/[\w/-]+\.md", file.read_text(encoding="utf-8")):
                assert (REPOSITORY / page).exists(), f"{file}: {page}"

    def test_the_readme_is_short(self) -> None:
        assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 120


class TestReference:
    script = runpy.run_path(str(REPOSITORY / "scripts" / "make_reference.py"))

    def test_generated_pages_are_up_to_date(self) -> None:
        assert self.script["outdated"]() == [], "python scripts/make_reference.py writes them again"

    def test_every_command_has_a_section(self) -> None:
        text = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
        for command in COMMANDS:
            assert f"\n## headstart {command}" in text


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/ (class folders) and split/ (train and val) of two classes, and runs/first and runs/second on photos/."""
    folder = tmp_path_factory.mktemp("docs")
    number = 0
    for code, label in enumerate(("ants", "bees")):
        for place, count in ((f"photos/{label}", 12), (f"split/train/{label}", 8), (f"split/val/{label}", 6)):
            (folder / place).mkdir(parents=True)
            for index in range(count):
                number += 1
                draw(code, number).resize((32, 32)).save(folder / place / f"{index}.jpg")
    shutil.copy(folder / "photos/ants/0.jpg", folder / "photos/ants/copy.jpg")  # for the data check to find
    for name in ("first", "second"):
        run_block(f"headstart train --config frozen_head --data.root photos --out runs/{name}", folder)
    return folder


def run_block(code: str, folder: Path, language: str = "bash") -> None:
    code = code.replace("headstart train", f"headstart train {SMALL}")
    run_in(folder, ["bash", "-eo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code])


def run_in(folder: Path, command: list[str]) -> None:
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY / "src"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "TORCH_HOME": str(folder / "cache"),
        "https_proxy": "http://127.0.0.1:9",  # where nothing listens: no weights are downloaded
        "COLUMNS": "100",
    }
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_the_python_lines_of_the_readme_run_in_a_notebook(drawn, tmp_path) -> None:
    for package in ("nbconvert", "ipykernel"):
        pytest.importorskip(package, reason=f"{package} is part of the extra dev")
    shutil.copytree(drawn / "photos", tmp_path / "photos")
    code = next(block.code for block in blocks(PAGES[0]) if block.language == "python")
    shown = (
        "import time\nfrom headstart.runtime.progress import ItemProgress\nwith ItemProgress('features', 4) as it:\n"
    )
    shown += "    for _ in range(4):\n        time.sleep(0.3)\n        it.advance()"
    cells = [code, "run", "headstart.load(run)", "run.path.exists()", shown]
    notebook = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "cells": [
            {"cell_type": "code", "id": str(n), "metadata": {}, "execution_count": None, "outputs": [], "source": cell}
            for n, cell in enumerate(cells)
        ],
    }
    (tmp_path / "readme.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    run_in(tmp_path, ["jupyter", "nbconvert", "--execute", "--to", "notebook", "--output", "ran", "readme.ipynb"])

    ran = json.loads((tmp_path / "ran.ipynb").read_text(encoding="utf-8"))
    printed, run, predictor, exists, progress = (cell["outputs"] for cell in ran["cells"])
    text = "".join("".join(output["text"]) for output in printed if output["output_type"] == "stream")
    assert "runs/frozen_head-001/report.html" in text
    assert "photos/ants/0.jpg" in text
    page = "".join(run[0]["data"]["text/html"])
    assert "accuracy" in page
    assert "data:image/png;base64," in page
    assert "Predictor(" in "".join(predictor[0]["data"]["text/plain"])
    assert exists[0]["data"]["text/plain"] == ["True"]
    assert [output["output_type"] for output in progress] == ["display_data"]  # one, which was updated
    assert "4/4" in "".join(progress[0]["data"]["text/plain"])


@pytest.mark.extended
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [page for page in PAGES if any(to_run(page))], ids=name_of)
def test_the_code_of_a_page_runs(page, drawn, tmp_path) -> None:
    shutil.copytree(drawn / ("split" if page.parent.name == "tutorial" else "photos"), tmp_path / "photos")
    code = list(to_run(page))
    for name in ("first", "second"):  # those that the page takes from another page
        if not any(f"--out runs/{name}\n" in block.code for block in code):
            shutil.copytree(drawn / "runs" / name, tmp_path / "runs" / name)
    for block in code:
        run_block(block.code, tmp_path, block.language)
