"""report.html in Chromium: three widths, light and dark, and accessible as far as axe-core can tell."""

import itertools
import json
import shutil
from dataclasses import replace

import pytest
from support.choices import a_choice
from support.chromium import SCHEMES, WIDTHS, chromium, opened
from support.runs import small

from headstart.cli.main import main
from headstart.report.gallery import MAX_CARDS, Gallery
from headstart.report.pages import render_report
from headstart.runs.finished_run import read_run
from headstart.selection.page import choose_page
from headstart.training.run import run as train

pytestmark = [pytest.mark.browser, pytest.mark.slow]
WINDOWS = tuple(itertools.product(WIDTHS, SCHEMES))
FEW_WINDOWS = ((360, "light"), (768, "dark"), (1280, "dark"))
EXAMINED = ((360, "light"), (1280, "dark"))  # by axe-core, which takes a second


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def scrolling(page):
    """Names of the visible tables that are wider than their space."""
    return page.eval_on_selector_all(
        ".scroll",
        "all => all.filter(e => !e.closest('details') && e.scrollWidth > e.clientWidth + 1)"
        ".map(e => e.getAttribute('aria-label'))",
    )


def on_bank(root, out):
    """A run with an exact head, at 32 px."""
    config = small(root, out, strategy="frozen_head", runtime={"bank": str(out.parent / "bank")})
    return train(replace(config, strategy=replace(config.strategy, features="bank")))


def check(browser, folder, *, charts, windows):
    """No request, no error on the console, nothing wider than the window, every chart and image drawn, and axe-core
    finds nothing."""
    path = folder / "report.html"
    val = json.loads((folder / "summary.json").read_text())["val"]
    cards = min(MAX_CARDS, val["correct"]) + min(MAX_CARDS, val["n"] - val["correct"])
    assert cards > MAX_CARDS, "the run has to make mistakes"
    pictures = 2 * cards + 1  # each beside its Grad-CAM, and the augmented training images
    for width, scheme in windows:
        with opened(browser, path, width=width, scheme=scheme) as watched:
            page = watched.page
            assert [url for url in watched.requests if not url.startswith("data:")] == [path.absolute().as_uri()]
            assert watched.complaints == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            drawn = page.eval_on_selector_all(
                "svg.chart",
                "all => all.map(e => [e.getBoundingClientRect().width, e.querySelectorAll('circle, polyline').length])",
            )
            assert len(drawn) == charts
            assert all(px >= 200 and parts >= 1 for px, parts in drawn)
            shown = page.eval_on_selector_all("main img", "all => all.map(i => i.naturalWidth > 0 && i.alt !== '')")
            assert len(shown) == pictures
            assert all(shown)
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(13, 17, 23)")
            if (width, scheme) in EXAMINED:
                page.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")
                assert watched.faults_of_accessibility() == [], (width, scheme)


def test_a_run_by_epochs(browser, folder):
    check(browser, folder, charts=5, windows=WINDOWS)


def test_the_numbers_under_the_gauge_are_at_their_places(browser, folder):
    for width in WIDTHS:
        with opened(browser, folder / "report.html", width=width, scheme="light") as watched:
            left, px = watched.page.eval_on_selector(".track", "e => [e.getBoundingClientRect().x, e.clientWidth]")
            places = watched.page.eval_on_selector_all(
                ".hero .scale span",
                "all => all.map(e => e.getBoundingClientRect())"
                ".map(box => [box.left, (box.left + box.right) / 2, box.right])",
            )
            middles = [middle for _, middle, _ in places[1:-1]]
            assert middles == pytest.approx([left + px * share for share in (0.25, 0.5, 0.75)], abs=1)
            assert places[0][0] == pytest.approx(left, abs=1)
            assert places[-1][2] == pytest.approx(left + px, abs=1)


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_long_names_hide_no_number(browser, folder, width, tmp_path):
    run = read_run(folder)
    names = ("x" * 123, "a name of several words_and_more", "c")
    confusion = [[3, 2, 0], [1, 3, 1], [0, 0, 5]]
    summary = replace(run.summary, val={**run.summary.val, "confusion_matrix": confusion})
    run = replace(run, info=replace(run.info, classes=names), summary=summary)
    page = tmp_path / "report.html"
    page.write_text(render_report(run, Gallery([], [], 0)), encoding="utf-8")
    with opened(browser, page, width=width, scheme="light") as watched:
        assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
        assert [name for name in scrolling(watched.page) if name != "Confusion matrix" or width > 400] == []
        assert watched.page.eval_on_selector("th[scope=row]", "e => e.getBoundingClientRect().width") <= max(
            width / 2, 320
        )


def test_the_colours_change_by_a_button_and_the_keyboard_reaches_everything(browser, folder):
    with opened(browser, folder / "report.html", width=768, scheme="light") as watched:
        page = watched.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.getAttribute('href')").startswith("#")  # past the header
        reached = set()
        for _ in range(40):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.tagName"))
        assert reached >= {"A", "BUTTON", "SUMMARY", "PRE"}
        page.get_by_role("button", name="dark").click()
        page.wait_for_function("getComputedStyle(document.body).backgroundColor === 'rgb(13, 17, 23)'")
        assert page.get_by_role("button", name="light").is_visible()
        for _ in range(5):  # the browser writes down what a page stores in its own time
            page.reload()
            if page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)":
                break
            page.wait_for_timeout(500)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"


def test_the_pages_of_the_doctor_a_comparison_and_a_choice(browser, folder, tiny_data, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    for command in (
        ["data", "check", tiny_data, "--out", tmp_path / "checked"],
        ["compare", folder, other, "--out", tmp_path / "compare.html"],
    ):
        with pytest.raises(SystemExit) as end:
            main([str(part) for part in command])
        assert end.value.code == 0
    (tmp_path / "choose.html").write_text(choose_page(a_choice()))
    for path in (tmp_path / "checked" / "doctor.html", tmp_path / "compare.html", tmp_path / "choose.html"):
        with opened(browser, path, width=360, scheme="dark") as watched:
            assert watched.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
            assert watched.page.evaluate("document.documentElement.scrollWidth") <= 360
            assert len([url for url in watched.requests if not url.startswith("data:")]) == 1
            assert watched.complaints == []
            assert scrolling(watched.page) == []
            assert watched.faults_of_accessibility() == []


def test_solar_cells(browser, tmp_path):
    pytest.importorskip("elpv_dataset", reason="NOT TESTED ON SOLAR CELLS: pip install elpv-dataset")
    from headstart.data.solar_cells import write_solar_cells

    write_solar_cells(tmp_path / "cells", seed=0)
    for folder in (tmp_path / "cells").glob("*/*"):  # a tenth of them will do for the page
        for number, path in enumerate(sorted(folder.iterdir())):
            if number % 10:
                path.unlink()
    check(browser, on_bank(tmp_path / "cells", tmp_path / "run"), charts=4, windows=FEW_WINDOWS)


def test_ants_and_bees(browser, ants_and_bees, tmp_path):
    check(browser, on_bank(ants_and_bees, tmp_path / "run"), charts=4, windows=FEW_WINDOWS)
