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
from headstart.report.gallery import MAX_ERRORS, MAX_UNCONFIDENT, Card, Gallery
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
    errors = min(MAX_ERRORS, val["n"] - val["correct"])
    assert errors > 1, "the run has to make mistakes"
    cards = min(MAX_UNCONFIDENT, val["correct"]) + errors
    pictures = 2 * cards + 12  # each beside its Grad-CAM, and the augmented training images
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


def on_one_line(page):
    """Of each row of the table of classes: whether the interval of recall, and of precision, is beside its value."""
    return page.eval_on_selector_all(
        ".classes tbody tr",
        """all => all.map(row => ['recall', 'precision'].map(name => {
            const cell = row.querySelector(`td[data-label=${name}]`), next = cell.nextElementSibling
            const [value, interval] = [cell, next].map(one => one.getBoundingClientRect())
            return value.top < interval.bottom && interval.top < value.bottom && value.right <= interval.left
                && value.left <= row.getBoundingClientRect().left + 1
        }))""",
    )


@pytest.mark.parametrize("name", ["report", "evaluation", "folds"])
def test_on_a_phone_an_interval_is_beside_its_value_and_the_page_is_not_too_wide(name, browser, pages):
    with opened(browser, pages[name], width=390, scheme="dark") as watched:
        assert on_one_line(watched.page) == [[True, True]] * 3
        assert watched.page.evaluate("document.documentElement.scrollWidth") <= 390
        clipped = "all => all.filter(e => e.offsetParent && e.scrollWidth > e.clientWidth + 1).length"
        assert watched.page.eval_on_selector_all("figure pre, section > pre", clipped) == 0
        assert watched.faults_of_accessibility() == []


@pytest.mark.parametrize("width", [320, 360, 390])
def test_a_tile_without_a_calibration_error_fits_a_phone(width, browser, folder, tmp_path):
    run = read_run(folder)
    val = {**run.summary.val, "ece": 0.0}
    run = replace(run, summary=replace(run.summary, val=val))
    (tmp_path / "report.html").write_text(render_report(run, Gallery([], [], 0)))
    with opened(browser, tmp_path / "report.html", width=width, scheme="dark") as watched:
        wide = "all => all.filter(e => e.scrollWidth > e.clientWidth).map(e => e.textContent)"
        assert "none detected" in watched.page.text_content(".tiles")
        assert watched.page.eval_on_selector_all(".tiles .card", wide) == []
        assert watched.page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_colours_change_by_a_button_and_the_keyboard_reaches_everything(browser, folder):
    with opened(browser, folder / "report.html", width=768, scheme="light") as watched:
        page = watched.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.getAttribute('href')").startswith("#")  # past the header
        reached = set()
        for _ in range(120):
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


@pytest.fixture(scope="module")
def pages(folder, tiny_data, tmp_path_factory):
    """Every page that a command writes to a file, by name."""
    place = tmp_path_factory.mktemp("pages")
    other = shutil.copytree(folder, place / "other")
    for command in (
        ["data", "check", tiny_data, "--out", place / "checked"],
        ["compare", folder, other, "--out", place / "compare.html"],
        ["evaluate", folder, "--data", tiny_data, "--out", place / "evaluation.html"],
    ):
        with pytest.raises(SystemExit) as end:
            main([str(part) for part in command])
        assert end.value.code == 0
    (place / "choose.html").write_text(choose_page(a_choice()))
    train(small(tiny_data, place / "folds", strategy="frozen_head", train={"folds": 2, "epochs": 1}))
    return {
        "report": folder / "report.html",
        "doctor": place / "checked" / "doctor.html",
        "compare": place / "compare.html",
        "choose": place / "choose.html",
        "evaluation": place / "evaluation.html",
        "folds": place / "folds" / "report.html",
    }


@pytest.mark.parametrize("name", ["doctor", "compare", "choose", "evaluation"])
def test_the_other_pages_fit_a_phone_in_dark_mode_and_are_accessible(name, browser, pages):
    with opened(browser, pages[name], width=360, scheme="dark") as watched:
        assert watched.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
        assert watched.page.evaluate("document.documentElement.scrollWidth") <= 360
        assert len([url for url in watched.requests if not url.startswith("data:")]) == 1
        assert watched.complaints == []
        assert [one for one in scrolling(watched.page) if one != "Confusion matrix"] == []
        assert watched.faults_of_accessibility() == []


@pytest.mark.parametrize("name", ["report", "doctor", "compare", "choose", "evaluation"])
def test_every_page_has_the_brand_the_theme_button_navigation_and_a_glossary(name, browser, pages):
    with opened(browser, pages[name], width=1440, scheme="light") as watched:
        page = watched.page
        assert page.locator("header .brand").text_content().strip() == "headstart"
        page.get_by_role("button", name="dark").click()
        page.wait_for_function("getComputedStyle(document.body).backgroundColor === 'rgb(13, 17, 23)'")
        assert page.locator("nav a").count() >= 3
        targets = page.eval_on_selector_all("a[href^='#']", "all => all.map(one => one.hash.slice(1))")
        assert "glossary" in targets
        assert page.evaluate("ids => ids.filter(id => !document.getElementById(id))", targets) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 1440
        right = page.eval_on_selector_all(
            "main > section", "all => Math.max(...all.map(e => e.getBoundingClientRect().right))"
        )
        assert right > 1380, "the width is used"


def test_a_click_on_a_heading_sorts_a_table(browser, folder):
    with opened(browser, folder / "report.html", width=1280, scheme="light") as watched:
        page = watched.page

        def shown(column):
            return page.eval_on_selector_all(
                "table.classes tbody tr", f"rows => rows.map(row => row.cells[{column}].textContent.trim())"
            )

        recalls = [float(text.rstrip("%")) for text in shown(3)]
        assert recalls == sorted(recalls)
        table = page.locator("table.classes")
        table.get_by_role("button", name="class", exact=True).click()
        assert shown(0) == sorted(shown(0))
        table.get_by_role("button", name="class", exact=True).click()
        assert shown(0) == sorted(shown(0), reverse=True)
        table.get_by_role("button", name="precision").click()
        values = [float(text.rstrip("%")) for text in shown(5) if text != "–"]
        assert values == sorted(values)
        assert table.locator("[aria-sort]").count() == 1


def test_mistakes_are_filtered_by_true_and_predicted_class(browser, folder, tmp_path):
    pairs = [("a", "b"), ("a", "c"), ("b", "c"), ("c", "a")]
    cards = [Card(f"{number}.jpg", *pair, 0.9, 0.1, None, None) for number, pair in enumerate(pairs)]
    path = tmp_path / "report.html"
    path.write_text(render_report(read_run(folder), Gallery(cards, [], len(cards))), encoding="utf-8")
    with opened(browser, path, width=1280, scheme="light") as watched:
        shown = watched.page.locator(".gallery.filterable > li:visible")
        for true, predicted, expected in (
            ("all", "all", 4),
            ("a", "all", 2),
            ("a", "c", 1),
            ("all", "c", 2),
            ("c", "b", 0),
        ):
            watched.page.locator(".filters select").nth(0).select_option(label=true)
            watched.page.locator(".filters select").nth(1).select_option(label=predicted)
            assert shown.count() == expected


def test_mistakes_can_be_filtered_by_class_and_enlarged(browser, folder):
    with opened(browser, folder / "report.html", width=1280, scheme="light") as watched:
        page = watched.page
        cards = page.locator(".gallery.filterable > li")
        classes = cards.evaluate_all("all => all.map(card => card.dataset.label)")
        page.get_by_label("True class").select_option(label=classes[0])
        assert page.locator(".gallery.filterable > li:visible").count() == classes.count(classes[0])
        assert page.locator(".filters [role=status]").text_content() == (
            f"{classes.count(classes[0])} of {len(classes)} images"
        )
        small = cards.first.locator("img").first.bounding_box()["width"]
        cards.first.get_by_role("button").click()
        dialog = page.get_by_role("dialog")
        assert dialog.locator("img").count() == 2
        assert dialog.locator("img").first.bounding_box()["width"] > 2 * small
        assert f"True {classes[0]}" in " ".join(dialog.text_content().split())
        before = dialog.locator("img").first.get_attribute("src")
        page.keyboard.press("ArrowRight")
        assert dialog.locator("img").first.get_attribute("src") != before
        page.keyboard.press("Escape")
        assert dialog.count() == 0
        assert watched.complaints == []


def test_on_paper_colours_are_light_and_nothing_is_clipped_or_folded(browser, folder):
    with opened(browser, folder / "report.html", width=700, scheme="dark") as watched:
        page = watched.page
        page.emulate_media(media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not page.locator("nav").is_visible()
        clipped = page.eval_on_selector_all(
            "pre, .scroll", "all => all.filter(e => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1).length"
        )
        assert clipped == 0
        assert (
            page.eval_on_selector_all(
                "h2, h3", "all => all.filter(e => getComputedStyle(e).breakAfter !== 'avoid').length"
            )
            == 0
        )
        config = page.locator("pre[aria-label='config.yaml']")
        assert config.is_visible()
        assert config.evaluate("e => e.scrollHeight <= e.clientHeight + 1")
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert not config.is_visible()


def test_the_cell_of_a_heat_map_under_the_pointer_is_read_out(browser, folder, tmp_path):
    run = read_run(folder)
    names = tuple(f"class {number}" for number in range(40))
    confusion = [[7 if row == column else (row + column) % 3 for column in range(40)] for row in range(40)]
    summary = replace(run.summary, val={**run.summary.val, "confusion_matrix": confusion})
    info = replace(run.info, classes=names, calibration=None)
    path = tmp_path / "report.html"
    path.write_text(render_report(replace(run, info=info, summary=summary), Gallery([], [], 0)), encoding="utf-8")
    with opened(browser, path, width=1440, scheme="light") as watched:
        ground = watched.page.locator(".heat-map .ground")
        box = ground.bounding_box()
        cell = box["width"] / 40
        ground.hover(position={"x": 3.5 * cell, "y": 5.5 * cell}, force=True)
        total = sum(confusion[5])
        text = watched.page.locator("output").text_content()
        assert (
            text
            == f"True class 5, predicted class 3: {confusion[5][3]} ({100 * confusion[5][3] / total:.1f}% of {total})"
        )
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
