"""`headstart demo`: a small one from end to end, again after an interruption, and what its sentences say."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from headstart.cli import demo as cli
from headstart.cli.main import main
from headstart.demo import FORWARD_GFLOP, PLAN_FILE, Demo, Plan
from headstart.errors import InputError, Stopped
from headstart.results import Comparison, PairedComparison

pytest.importorskip("elpv_dataset", reason="DEMO NOT TESTED: pip install 'headstart[demo]'")

SMALL = Plan(images=80, image_size=32, epochs=1)
TITLES = ["Data", "Check the data", "Train a new head", "Choose a backbone", "Tune the whole network", "Compare"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("COLUMNS", "100")


def stop_in(strategy: str) -> Callable[[list[str]], None]:
    """`headstart train` that a signal stops in the runs of a configuration."""
    train = cli._COMMANDS["train"]

    def command(argv: list[str]) -> None:
        if strategy in argv:
            raise Stopped("continue with headstart train", signal_name="SIGTERM")
        train(argv)

    return command


@pytest.mark.slow
def test_a_demo_continues_after_an_interruption_and_shows_every_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my demo"
    with monkeypatch.context() as patch:
        patch.setitem(cli._COMMANDS, "train", stop_in("probe_then_tune"))
        with pytest.raises(Stopped, match=f"headstart demo '{folder}'"):
            cli.run_demo(folder, SMALL)
    first = capsys.readouterr().out
    assert "this machine, the demo takes about" in first
    (folder / "checked" / "groups.csv").unlink()  # as if the check had been killed while it wrote

    took = cli.run_demo(folder, SMALL)
    assert list(took) == ["Check the data", "Tune the whole network", "Compare"]
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("This step is done.") == 3
    assert "for what is left" in text
    for number, title in enumerate(TITLES, 1):
        assert f"{number}/6 {title}" in text
    for fragment in ("95% confidence", "Always answering", "$ headstart compare", "-> "):
        assert fragment in text
    for written in ("tuned/report.html", "comparison.html"):
        assert str(folder / written) in text
        assert (folder / written).is_file()
    assert "headstart train photos --out runs/first" in text

    assert list(cli.run_demo(folder, SMALL)) == ["Compare"], "nothing is computed again"
    again = capsys.readouterr().out
    assert "takes about" not in again
    assert again.count("This step is done.") == 5


def test_ctrl_c_in_a_step_without_a_state_names_the_command_that_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(argv: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli._COMMANDS, "data", interrupted)
    monkeypatch.setattr("headstart.demo.seconds_here", lambda stages, plan: 200.0)
    with pytest.raises(Stopped, match=r"SIGINT.*headstart demo"):
        cli.run_demo(tmp_path / "demo", SMALL)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1, "10 seconds"), (44, "40 seconds"), (89, "90 seconds"), (100, "1.5 minutes"), (180, "3 minutes")],
)
def test_a_duration_is_rounded(seconds: float, text: str) -> None:
    assert cli._duration(seconds) == text


def test_the_work_is_at_most_8_tflop() -> None:
    assert sum(stage.gflop for stage in Demo(Path("not there"), Plan()).stages()) <= 8000


@pytest.mark.slow
@pytest.mark.parametrize("name", FORWARD_GFLOP)
def test_the_work_of_an_image_is_what_torch_counts(name: str) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from headstart.backbones import BACKBONES
    from headstart.model.build import build_model

    model = build_model(BACKBONES[name], 2, tensors=None, head_init="zero", seed=0).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 112, 112))
    assert counter.get_total_flops() / 1e9 == pytest.approx(FORWARD_GFLOP[name], rel=0.03)


def written_results(folder: Path) -> Demo:
    """A demo whose runs are summaries only."""
    demo = Demo(folder, SMALL)
    demo.create_folder()
    for run, seconds in ((demo.head, 3.0), (demo.tuned, 60.0)):
        run.mkdir()
        (run / "summary.json").write_text(json.dumps({"wall_s": seconds}))
    return demo


@pytest.mark.parametrize(
    ("verdict", "fragments"),
    [
        ("better", ["significantly better", "60 s"]),
        ("worse", ["significantly worse", "frozen head"]),
        ("not proven", ["+1.2 points", "not significant", "400 images", "chance"]),
    ],
)
def test_the_last_sentence_depends_on_the_verdict(
    verdict: Literal["better", "worse", "not proven"],
    fragments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    demo = written_results(tmp_path / "demo")
    pair = PairedComparison(
        first="a",
        second="b",
        n=400,
        gained=18,
        lost=13,
        difference=0.0125,
        ci95=(-0.016, 0.041),
        p_value=0.47,
        p_holm=0.47,
        loss_difference=0.0,
        loss_ci95=None,
        verdict=verdict,
        images_needed=2000,
    )
    monkeypatch.setattr(
        "headstart.report.comparison_command.compare_runs",
        lambda *_, **__: Comparison(runs=(), comparisons=(pair,), notes=()),
    )
    sentence = demo._comparison_meaning()
    for fragment in fragments:
        assert fragment in sentence


@pytest.mark.parametrize(
    ("counts", "fragments"),
    [
        ({"near_duplicate_across_splits": 1}, ["1 group ", "is in both", "optimistic"]),
        ({"duplicate_across_splits": 2, "near_duplicate_across_splits": 3}, ["5 groups", "are in both"]),
        ({"suspected_label": 47}, ["No image", "47 labels"]),
        ({}, ["No image"]),
    ],
)
def test_the_sentence_about_the_data_has_the_numbers_of_the_check(
    counts: dict[str, int], fragments: list[str], tmp_path: Path
) -> None:
    demo = Demo(tmp_path / "demo", SMALL)
    demo.checked.mkdir(parents=True)
    (demo.checked / "doctor.json").write_text(json.dumps({"counts": counts}))
    sentence = demo._check_meaning()
    for fragment in fragments:
        assert fragment in sentence


def exit_code(*argv: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(argv)
    return int(end.value.code or 0)


def test_without_the_images_one_sentence_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "elpv_dataset", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert exit_code("demo", str(tmp_path / "demo")) == 2
    assert "pip install 'headstart[demo]'" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one process"):
        cli.run_demo(tmp_path / "demo", SMALL)
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("content", ["{}", "damaged"])
def test_the_demo_of_another_version_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / PLAN_FILE).write_text(content)
    with pytest.raises(InputError, match="another version"):
        Demo(tmp_path, SMALL)
