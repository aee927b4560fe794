"""headstart choose and headstart.choose, on drawn images: ResNet-18 at 32 and 64 px."""

import json
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.choices import a_choice
from support.processes import Started, headstart, torchrun
from threadpoolctl import ThreadpoolController, threadpool_limits

import headstart as package
from headstart.backbones import BACKBONES
from headstart.cli.main import main
from headstart.cli.print_results import print_choice
from headstart.cli.train import parse_train
from headstart.config import RuntimeConfig
from headstart.errors import InputError
from headstart.results import Choice
from headstart.runtime.accelerator import start_accelerator
from headstart.runtime.signals import StopRequest
from headstart.selection.candidates import candidates
from headstart.selection.command import _by_all, _fixed_sizes
from headstart.selection.options import in_options

SIZES = ("--backbones", "resnet18", "--weights", "bundled", "--sizes", 32, 64, "--repeats", 2)
MEASURED = {"predict_images_per_s", "train_images_per_s", "machine", "command"}
"""What differs between two machines, two measurements or two banks."""


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_row_of_the_table_fits_into_80_columns(is_terminal, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    choice = a_choice()
    first, second = choice.candidates
    names = ("lite0 at 224 px", "resnet18 at 224 px")
    rows = (replace(first, name=names[0]), replace(second, name=names[1], weights="bundled", predict_images_per_s=1e4))
    comparison = replace(choice.comparisons[0], first=names[1], verdict="not proven")
    print_choice(replace(choice, candidates=rows, comparisons=(comparison,)), out=None)
    printed = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    table = [line for line in printed.splitlines() if line.startswith(("│", "┃"))]
    assert max(len(line) for line in table) <= (80 if is_terminal else 130)
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in table if line.startswith("│")]
    assert cells[0] == [names[0], "95.0%", "0.1000", "300", "35.2", ""]
    text = " ".join(row[0] for row in cells[1:])
    assert text == f"{names[1]}, bundled"
    assert cells[1][1:] == ["60.0%", "0.1000", "10,000", "35.2", "not proven"]


def exit_code(*argv: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(part) for part in argv])
    return int(end.value.code or 0)


def without_speeds(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: without_speeds(value) for key, value in values.items() if key not in MEASURED}
    return [without_speeds(value) for value in values] if isinstance(values, list) else values


def lines_of(printed: str) -> list[str]:
    """Of the candidates, each once: in tests, messages are printed twice."""
    return list(dict.fromkeys(line for line in printed.splitlines() if re.search(r"\(\d of \d\)", line)))


@pytest.fixture(scope="module")
def finished(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The bank and the output folder of a finished command on tiny_data. Do not write in them."""
    folder = tmp_path_factory.mktemp("choice")
    bank, out = folder / "bank", folder / "runs" / "choice"
    assert exit_code("choose", tiny_data, *SIZES, "--bank", bank, "--out", out) == 0
    return bank, out


@pytest.fixture(scope="module")
def result(finished: tuple[Path, Path]) -> Choice:
    return Choice.from_json((finished[1] / "choose.json").read_text())


@pytest.mark.slow
def test_both_candidates_are_evaluated_on_the_training_images_alone(result: Choice) -> None:
    assert {candidate.name for candidate in result.candidates} == {"resnet18 at 32 px", "resnet18 at 64 px"}
    assert (result.n, result.folds, result.repeats) == (36, 5, 2)
    assert result.chosen == result.candidates[0].name
    assert "(" in result.machine, "the processor has no name"
    assert sum(candidate.selected_share for candidate in result.candidates) == pytest.approx(1)
    for candidate in result.candidates:
        assert candidate.accuracy == candidate.correct / 36
        assert candidate.accuracy > 0.6
        assert candidate.parameters == 11_176_512 + 3 * 513
        assert candidate.file_bytes >= 4 * candidate.parameters
        assert min(candidate.predict_images_per_s, candidate.train_images_per_s) > 1
    assert result.expected_ci95[0] < result.expected_accuracy <= result.expected_ci95[1]
    assert any("15 validation images" in note for note in result.notes)


@pytest.mark.slow
def test_a_second_command_prints_the_stored_result_and_only_json(finished, result, tiny_data, capsys) -> None:
    bank, _ = finished
    assert exit_code("choose", tiny_data, *SIZES, "--bank", bank, "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == result.to_dict()
    assert ["results from the bank" in line for line in lines_of(printed.err)] == [True, True]
    assert exit_code("choose", tiny_data, *SIZES, "--bank", bank) == 0
    printed = capsys.readouterr()
    assert f"\n{result.command}\n" in printed.out
    assert f"{result.expected_accuracy:.1%}" in printed.out
    assert "not proven" in printed.out


@pytest.mark.slow
def test_python_returns_what_the_command_writes(finished, result, tiny_data) -> None:
    keys = {"backbones": ["resnet18"], "sizes": [32, 64], "weights": "bundled", "repeats": 2, "bank": finished[0]}
    assert package.choose(tiny_data, **keys) == result
    with pytest.raises(InputError, match="folds is 2"):
        package.choose(tiny_data, folds=2, **keys)


@pytest.mark.slow
def test_the_printed_command_trains_the_chosen_candidate_on_its_stored_features(result, tmp_path, capsys) -> None:
    words = shlex.split(result.command)
    config = parse_train(words[2:])
    best = result.candidates[0]
    assert (config.model.backbone, config.model.weights) == (best.backbone, best.weights)
    assert config.data.image_size == best.image_size
    assert exit_code(*words[1:], "--out", tmp_path / "run") == 0
    assert re.search(r"features: 36 from the bank .*, 15 computed", capsys.readouterr().out)


@pytest.mark.slow
def test_the_page_is_self_contained_and_shows_the_result(finished, result: Choice) -> None:
    page = (finished[1] / "choose.html").read_text()
    assert not re.search(r"""(?:src|href)="(?!#|data:)|url\(|@import|https?:""", page)
    for text in (result.chosen, result.command.replace("'", "&#39;"), f"{result.expected_accuracy:.1%}"):
        assert text in page
    for candidate in result.candidates:
        assert page.count(candidate.name) >= 2
        assert f"{candidate.loss:.4f}" in page
    assert sorted(path.name for path in finished[1].iterdir()) == ["choose.html", "choose.json"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_command_that_was_stopped_in_the_middle_continues_to_the_same_table(
    number: int, result: Choice, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = tmp_path / "bank"
    started = Started(headstart, "choose", tiny_data, *SIZES, "--bank", bank, cwd=tmp_path)
    started.wait_until(lambda: list(bank.glob("*/choose-*.npz")))
    started.send_signal(number)
    ended = started.finish()
    assert ended.returncode == (143 if number == signal.SIGTERM else -number)
    if number == signal.SIGTERM:
        assert "the same command continues" in ended.stderr
    first = next(bank.glob("*/choose-*.npz"))
    content = first.read_bytes()
    assert exit_code("choose", tiny_data, *SIZES, "--bank", bank, "--json") == 0
    printed = capsys.readouterr()
    assert without_speeds(json.loads(printed.out)) == without_speeds(result.to_dict())
    assert "results from the bank" in lines_of(printed.err)[0]
    assert first.read_bytes() == content


@pytest.mark.slow
def test_a_damaged_result_is_computed_again(finished, result, tiny_data, tmp_path, capsys) -> None:
    bank = tmp_path / "bank"
    shutil.copytree(finished[0], bank)
    for path in bank.glob("*/choose-*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    assert exit_code("choose", tiny_data, *SIZES, "--bank", bank, "--json") == 0
    printed = capsys.readouterr()
    assert without_speeds(json.loads(printed.out)) == without_speeds(result.to_dict())
    assert [re.search(r"36 from the bank", line) is not None for line in lines_of(printed.err)] == [True, True]


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_share_the_work_and_print_one_result(result: Choice, tiny_data: Path, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    ended = torchrun(2, "choose", tiny_data, *SIZES, "--bank", bank, "--json", cwd=tmp_path).finish()
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert "2 processes" in found["machine"]
    assert without_speeds(found) == without_speeds(result.to_dict())
    assert all(len(list(key.glob("*.safetensors"))) == 2 for key in bank.iterdir())


@pytest.mark.slow
def test_groups_and_copies_stay_together_and_are_in_the_command(image_folder, tmp_path, capsys) -> None:
    folder = image_folder(train=8)
    shutil.copy(folder / "red_checks" / "red_checks_00.jpg", folder / "red_checks" / "copy.jpg")
    options = ["--backbones", "resnet18", "--weights", "none", "--sizes", 32, "--bank", tmp_path / "bank", "--json"]
    assert exit_code("choose", folder, *options, "--groups", r"([a-z]+_[a-z]+)_0[0-4]") == 2
    assert re.search(r"class \w+ .*groups.*at least 3", capsys.readouterr().err)
    assert not list(tmp_path.glob("bank/*/*.safetensors"))
    assert exit_code("choose", folder, *options, "--groups", r"([a-z]+_0[0-9])\.", "--repeats", 1) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["repeats"] == 1
    assert any("1 identical file was left out" in note for note in found["notes"])
    config = parse_train(shlex.split(found["command"])[2:])
    assert (config.data.groups, config.data.split) == (r"([a-z]+_0[0-9])\.", "stratified")


@pytest.mark.slow
def test_a_largest_number_of_images_is_sampled(tiny_data, tmp_path, capsys) -> None:
    options = ["--backbones", "resnet18", "--weights", "none", "--sizes", 32, "--bank", tmp_path / "bank", "--json"]
    assert exit_code("choose", tiny_data, *options, "--images", 18, "--repeats", 1) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 18
    assert any("18 of 36" in note for note in found["notes"])


def test_the_defaults_are_the_weights_that_need_no_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    found = {one.backbone.name: one for one in candidates([], [], None)}
    assert next(iter(found)) == "resnet18"
    assert found["resnet18"].weights == "bundled"
    assert found["lite0"].weights == "imagenet"
    assert set(found) <= {"resnet18", "lite0", "lite1", "lite2"}
    assert all(one.image_size == BACKBONES[name].image_size for name, one in found.items())
    (checkpoints := tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (checkpoints / "resnet18-f37072fd.pth").touch()
    assert candidates(["resnet18"], [], None)[0].weights == "imagenet"
    assert [one.name for one in candidates(["lite0", "resnet50"], [64, 96], None)] == [
        "lite0 at 64 px",
        "lite0 at 96 px",
        "resnet50 at 64 px",
        "resnet50 at 96 px",
    ]


MISTAKES: dict[str, tuple[Callable[[Path], list[object]], str]] = {
    "backbone": (lambda _: ["--backbones", "resnet19"], r"--backbones\b.*resnet19.*resnet18"),
    "size": (lambda _: ["--sizes", 16], r"--sizes is 16\b.*\b32\b"),
    "twice": (lambda _: ["--backbones", "resnet18", "resnet18"], r"resnet18 at 224 px.*twice"),
    "weights": (lambda _: ["--backbones", "resnet18", "lite0", "--weights", "bundled"], r"--weights.*bundled.*lite0"),
    "many folds": (lambda _: ["--folds", 400], r"--folds\b.*\b400\b.*\b20\b"),
    "more folds than images": (
        lambda _: ["--backbones", "resnet18", "--folds", 20],
        r"--folds is 20\b.*class \w+ has \d+ .*use at most \d+",
    ),
    "few drawn images": (lambda _: ["--images", 1], r"--images is 1\b.*at least 3"),
    "folds": (lambda _: ["--folds", 2], r"--folds\b.*\b2\b"),
    "repeats": (lambda _: ["--repeats", 0], r"--repeats\b.*\b0\b"),
    "images": (lambda _: ["--images", 0], r"--images\b.*\b0\b"),
    "groups": (lambda _: ["--groups", "(nothing)"], r"groups.*nothing"),
    "out is a file": (lambda folder: ["--out", folder / "file"], r"--out .*file"),
    "out has a result": (lambda folder: ["--out", folder / "old"], r"--out .*choose\.json"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_before_anything_is_computed(mistake, tiny_data, tmp_path, capsys) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "choose.json").touch()
    arguments, pattern = MISTAKES[mistake]
    bank = tmp_path / "bank"
    assert exit_code("choose", tiny_data, *arguments(tmp_path), "--bank", bank) == 2
    complaint = capsys.readouterr().err
    assert re.search(pattern, complaint)
    assert complaint.count("\n") == 1
    assert not list(bank.glob("*/*.safetensors"))


PYTHON_MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "split": ({"split": "x"}, r"split is 'x'.*folder, stratified, stable"),
    "one backbone": ({"backbones": "lite0"}, r"backbones is 'lite0'.*\['lite0'\]"),
    "one size": ({"sizes": 64}, r"sizes is 64;.*\[64\]"),
    "text as a size": ({"sizes": ["64"]}, r"sizes is \['64'\]"),
    "text as folds": ({"folds": "5"}, r"folds is '5'"),
    "small size": ({"backbones": ["resnet18"], "sizes": [16]}, r"^sizes is 16\b"),
}


@pytest.mark.parametrize("mistake", PYTHON_MISTAKES)
def test_a_mistake_in_python_names_the_argument(mistake, tiny_data, tmp_path) -> None:
    arguments, pattern = PYTHON_MISTAKES[mistake]
    with pytest.raises(InputError, match=pattern):
        package.choose(tiny_data, **arguments, bank=tmp_path / "bank")


def test_messages_name_options_of_the_command() -> None:
    assert in_options("leave it out with --data.on_bad_file skip, data.split is 'x'; runtime.bank") == (
        "leave it out with --on_bad_file skip, --split is 'x'; --bank"
    )
    assert in_options("use headstart train --data.split stable") == "use headstart train --data.split stable"


def test_a_network_of_a_fixed_size_takes_part_once_at_its_own_size() -> None:
    found = candidates(["timm:test_vit", "resnet18"], [64, 96], None)
    assert [one.name for one in found] == ["timm:test_vit at 160 px", "resnet18 at 64 px", "resnet18 at 96 px"]
    (note,) = _fixed_sizes(found, [64, 96])
    assert "timm:test_vit" in note
    assert "160 pixels" in note
    assert not _fixed_sizes(found, [])


def test_matrix_products_have_one_thread_while_several_are_computed() -> None:
    libraries = ThreadpoolController().select(user_api="blas")

    def threads(_: int) -> list[int]:
        return [library["num_threads"] for library in libraries.info()]

    with threadpool_limits(2, user_api="blas"):
        accelerator = start_accelerator(RuntimeConfig(cpu=True, mixed_precision="no"))
        with StopRequest() as stop:
            inside = _by_all(accelerator, threads, [0, 1, 2], stop=stop)
        assert inside == [[1] * len(inside[0])] * 3
        assert threads(0) == [2] * len(inside[0])


def test_the_command_that_choose_replaces_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("probe", "photos") == 2
    assert "use headstart choose" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_inside_the_data_and_a_class_of_copies_are_refused(image_folder, tmp_path, capsys) -> None:
    folder = image_folder(train=4, val=2)
    assert exit_code("choose", folder, "--out", folder / "choice") == 2
    assert "inside the data" in capsys.readouterr().err
    for number, part in enumerate(("train", "train", "train", "val")):
        (folder / part / "zcopy").mkdir(exist_ok=True)
        image = folder / part / "red_checks" / ("red_checks_00.jpg")
        shutil.copy(image, folder / part / "zcopy" / f"{number}.jpg")
    bank = tmp_path / "bank"
    assert exit_code("choose", folder, "--backbones", "resnet18", "--bank", bank) == 2
    complaint = capsys.readouterr().err
    assert "zcopy" in complaint
    assert complaint.count("\n") == 1
    assert not list(bank.glob("*/*.safetensors"))
