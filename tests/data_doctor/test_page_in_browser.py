"""doctor.html in Chromium: decisions by clicks, and the fixes.csv that they make, which data apply accepts."""

import csv
import shutil

import pytest
from support.chromium import chromium, opened

from headstart.cli.main import main
from headstart.config import DataConfig, ModelConfig, RunConfig
from headstart.data_doctor.command import summary_lines
from headstart.data_doctor.findings import Finding
from headstart.data_doctor.fixes import write_fixes
from headstart.data_doctor.inspection import inspect
from headstart.data_doctor.page import doctor_page

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ODD = 'train/blue_waves/an "odd", name\nof two lines.png'
LONG = f"train/blue_waves/{'long_name_' * 12}.png"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def checked(tiny_data, tmp_path_factory):
    """A folder with a leak, empty files with long and odd names, a suspected label, its page and its fixes.csv."""
    place = tmp_path_factory.mktemp("doctor")
    data = shutil.copytree(tiny_data, place / "data")
    first, second = sorted((data / "train/red_checks").iterdir())[:2]
    shutil.copy(first, data / "val/red_checks/leak.png")
    for name in (ODD, LONG):
        (data / name).write_bytes(b"")
    (data / "train/.hidden.png").write_bytes(b"x")
    report = inspect(RunConfig(data=DataConfig(root=str(data)), model=ModelConfig(weights="bundled")), labels=False)
    suspect = second.relative_to(data).as_posix()
    moved = Finding.of("suspected_label", suspect, "looks like blue_waves", "move? train/blue_waves")
    animated = Finding.of("animated", suspect, "2 frames", "keep")
    findings = [*report.result.findings, moved, animated]
    (place / "doctor.html").write_text(doctor_page(report.checked, findings, summary_lines(report.result)))
    write_fixes(place / "fixes.csv", findings)
    return place, suspect


def downloaded(page, folder):
    with page.expect_download() as started:
        page.get_by_role("button", name="Download fixes.csv").click()
    assert started.value.suggested_filename == "fixes.csv"
    started.value.save_as(folder / "downloaded.csv")
    return folder / "downloaded.csv"


def choose(page, path, choice):
    """A click on the visible button of a file."""
    page.get_by_role("group", name=path).first.locator("label", has_text=choice).first.click()


def decisions(path):
    with path.open(newline="") as text:
        return {(row["path"], row["suggestion"]) for row in csv.DictReader(text)}


def test_without_a_decision_the_download_is_the_file_beside_the_page(browser, checked, tmp_path):
    place, _ = checked
    with opened(browser, place / "doctor.html", width=1280, scheme="light") as watched:
        assert downloaded(watched.page, tmp_path).read_bytes() == (place / "fixes.csv").read_bytes()
        assert watched.complaints == []


def test_clicks_make_a_file_that_data_apply_accepts(browser, checked, tmp_path):
    place, suspect = checked
    (leak,) = (path for path, _ in decisions(place / "fixes.csv") if path.startswith("val/red_checks/"))
    with opened(browser, place / "doctor.html", width=1280, scheme="light") as watched:
        page = watched.page
        tally = page.locator("#tally")
        assert "1 not decided" in tally.text_content()
        choose(page, suspect, "move")  # the suggested folder
        assert "not decided" not in tally.text_content()
        choose(page, leak, "move")  # without a suggestion
        folder = page.get_by_role("group", name=leak).first.get_by_role("combobox")
        for refused in ("", "../elsewhere", "/tmp"):
            folder.fill(refused)
            folder.press("Tab")
            assert not folder.evaluate("input => input.validity.valid")
        page.get_by_role("button", name="Download fixes.csv").click()  # refused: a folder is missing
        folder.fill("val/blue_waves")
        folder.press("Tab")
        choose(page, LONG, "drop")
        page.reload()  # decisions stay
        file = downloaded(page, tmp_path)
        assert watched.complaints == []
    found = decisions(file)
    assert {(suspect, "move train/blue_waves"), (leak, "move val/blue_waves"), (ODD, "drop")} <= found
    new = tmp_path / "new"
    with pytest.raises(SystemExit) as end:
        main(["data", "apply", str(file), "--data", str(place / "data"), "--out", str(new)])
    assert end.value.code == 0
    assert (new / "train/blue_waves" / suspect.rsplit("/", 1)[1]).is_file()
    assert (new / "val/blue_waves" / leak.rsplit("/", 1)[1]).is_file()
    for gone in (ODD, LONG, suspect, leak):
        assert not (new / gone).exists()


def test_a_decision_counts_for_every_finding_of_the_file_and_can_be_reset(browser, checked, tmp_path):
    place, suspect = checked
    with opened(browser, place / "doctor.html", width=1280, scheme="light") as watched:
        page = watched.page
        before = page.locator("#tally").text_content()
        groups = page.get_by_role("group", name=suspect)
        assert groups.count() == 2
        groups.nth(1).locator("label", has_text="drop").click()
        assert groups.nth(0).locator("input[value=drop]").is_checked()
        assert page.locator("#tally").text_content() != before
        found = decisions(downloaded(page, tmp_path))
        assert [suggestion for path, suggestion in found if path == suspect] == ["drop"]
        page.get_by_role("button", name="Reset").click()
        assert page.locator("#tally").text_content() == before
        assert downloaded(page, tmp_path).read_bytes() == (place / "fixes.csv").read_bytes()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (800, "light"), (1440, "light")])
def test_nothing_is_wider_than_the_window_and_everything_is_accessible(browser, checked, width, scheme):
    place, _ = checked
    with opened(browser, place / "doctor.html", width=width, scheme=scheme) as watched:
        assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
        assert watched.page.locator(".decide").count() >= 4
        assert watched.faults_of_accessibility() == []
        assert watched.complaints == []


def test_hidden_files_and_classes_have_no_buttons(browser, checked):
    place, _ = checked
    with opened(browser, place / "doctor.html", width=1280, scheme="light") as watched:
        section = watched.page.locator("section[aria-labelledby=hidden]")
        assert section.count() == 1
        assert section.locator(".decide").count() == 0
