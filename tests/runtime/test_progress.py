"""Progress on the screen: terminals of every width, notebooks, logs."""

import io
import re
import sys
import time
from types import SimpleNamespace

import pytest
import rich.console

from headstart.messages import LOG
from headstart.runs.progress import Status
from headstart.runtime import progress
from headstart.runtime.progress import NARROWEST_BAR, Display, ItemProgress, duration, fitted, screen_of

STATUS = Status(
    120, 400, 3, 10, loss=0.4123, accuracy=0.842, images_per_s=31.0, left_s=200.0, memory_bytes=1_500_000_000
)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("width", "has", "lacks"),
    [
        (140, ["step 120/400", "0.4123", "84.2", "31 img/s", "1.5 GB"], []),
        (80, ["step 120/400", "0.4123", "84.2"], ["img/s", "GB"]),
        (60, ["step 120/400", "0.4123"], ["84.2", "img/s", "GB"]),
        (40, [], ["step", "0.4123", "84.2", "img/s", "GB"]),
    ],
)
def test_a_narrow_terminal_keeps_the_epoch_and_the_time_left(width, has, lacks, monkeypatch, clock) -> None:
    out, terminal = io.StringIO(), rich.console.Console
    monkeypatch.setattr(progress, "screen_of", lambda stderr: "terminal")
    monkeypatch.setattr(
        rich.console, "Console", lambda **options: terminal(file=out, force_terminal=True, width=width, **options)
    )
    with Display(STATUS) as display:
        clock[0] += 1
        display.show(STATUS)
        display._bar._progress.refresh()
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue()).replace("\r", "\n").splitlines()
    shown = next(line for line in lines if "left" in line)
    assert len(shown) <= width
    assert shown.startswith("epoch 3/10 ")
    assert shown.rstrip().endswith("3:20 min left")
    assert shown.count("━") + shown.count("╸") + shown.count("╺") >= NARROWEST_BAR
    for text in has:
        assert text in shown
    for text in lacks:
        assert text not in shown


def test_the_time_left_stays_in_no_room_at_all() -> None:
    assert fitted(STATUS, 0) == "3:20 min left"


def test_items_show_their_rate_and_the_time_left_in_a_log(clock, caplog) -> None:
    caplog.set_level("INFO", logger=LOG.name)
    with ItemProgress("features", 1000) as shown:
        for _ in range(12):
            clock[0] += 1
            shown.advance(50)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    for fragment in ("features", "250/1,000", "50 img/s", "15 s left"):
        assert fragment in lines[0]


def test_items_of_an_unknown_number_have_no_time_left_until_it_is_known(clock) -> None:
    shown = ItemProgress("predict", style="silent")
    clock[0] += 2
    shown.advance(7)
    assert [text for _, text in shown.values] == ["7", "3.5 img/s"]
    shown.total = 14
    assert [text for _, text in shown.values] == ["7/14", "3.5 img/s", "2 s left"]


@pytest.mark.parametrize(("style", "log"), [("silent", None), ("silent", print), ("auto", None)])
def test_silence_prints_nothing(style, log, clock, capsys) -> None:
    with Display(STATUS, style=style, log=log) as display:
        clock[0] += 100
        display.show(STATUS)
        display.print("nothing")
    assert capsys.readouterr().out == ""


def test_a_notebook_has_one_output_that_is_updated(clock, monkeypatch) -> None:
    outputs: list[str] = []

    def display(content, **_):
        outputs.append(content["text/plain"])
        number = len(outputs) - 1

        def update(content, **_):
            outputs[number] = content["text/plain"]

        return SimpleNamespace(update=update)

    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    assert screen_of(stderr=False) == "notebook"
    with Display(STATUS, style="auto") as shown:
        for number in range(5):
            clock[0] += 1
            shown.show(STATUS)
            assert "120/400" in outputs[0]
            shown.print(f"epoch {number} is done")
    assert [text.splitlines() for text in outputs] == [[f"epoch {number} is done" for number in range(5)]]


def test_a_bar_is_drawn_a_few_times_per_second_at_most(clock, monkeypatch) -> None:
    shown = Display(STATUS, style="silent")
    drawn: list[Status] = []
    shown._quiet, shown._bar = False, SimpleNamespace(show=drawn.append)
    for _ in range(1000):
        clock[0] += 0.002
        shown.show(STATUS)
    assert len(drawn) <= 8


@pytest.mark.parametrize(("seconds", "text"), [(32.4, "32 s"), (185, "3:05 min"), (8040, "2:14 h")])
def test_a_duration_is_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
