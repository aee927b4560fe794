"""The functions that return results do what their commands do, in Python."""

import importlib.util
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.evaluated_runs import write_evaluated_run
from support.models import write_model
from support.planting import altered, encoded, good_folder, scene

import headstart
from headstart import InputError, RunConfig
from headstart.api import _python_names
from headstart.cli.main import main
from headstart.config_io import load_config
from headstart.evaluation.predictions import Predictions, describe
from headstart.exporters.formats import FORMATS
from headstart.results import Evaluation
from headstart.runs.evaluate import evaluation_of


@pytest.fixture(autouse=True)
def messages_on_screen() -> None:
    """Unlike in other tests, messages are only logged."""


def output_of(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """What a command prints on standard output."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(part) for part in argv])
    assert end.value.code in (0, 1)
    return capsys.readouterr().out


def of_few_lines(result: object) -> str:
    text = repr(result)
    assert text.startswith(f"{type(result).__name__}(")
    assert text.count("\n") < 5
    assert max(map(len, text.splitlines())) <= 200
    return text


def state_of_the_process() -> dict[str, object]:
    """What a call of a library must not change."""
    signals = [getattr(signal, name, signal.SIGINT) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGCHLD")]
    loggers = [logging.getLogger(), logging.getLogger("headstart")]
    return {
        "streams": (sys.stdout, sys.stderr, sys.excepthook),
        "signals": [signal.getsignal(number) for number in signals],
        "logging": [(logger.level, list(logger.handlers), logger.propagate) for logger in loggers],
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": torch.get_default_dtype(),
        "determinism": (
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
            torch.get_float32_matmul_precision(),
        ),
        "gradients": torch.is_grad_enabled(),
        "directory": os.getcwd(),
    }


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("--out a-b.json: no permission", "out a-b.json: no permission"),
        ("replace it with --overwrite", "replace it with overwrite=True"),
        ("skip them with --data.on_bad_file skip", "skip them with data.on_bad_file skip"),
        ("a--b and ---c", "a--b and ---c"),
        (
            "--out NEW is a file; headstart data check DIR --out NEW --labels; use --labels",
            "out NEW is a file; headstart data check DIR --out NEW --labels; use labels=True",
        ),
    ],
)
def test_messages_name_arguments_instead_of_options_except_in_commands(message: str, expected: str) -> None:
    assert _python_names(message) == expected


# ------------------------------------------------------------------------------------------------- train and load


FAST = {"data.image_size": 32, "data.num_workers": 0, "model.weights": "bundled", "runtime.mixed_precision": "no"}


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> headstart.Run:
    folder = tmp_path_factory.mktemp("trained")
    options = FAST | {"runtime.bank": folder / "bank", "optim.lr": 0.01}
    return headstart.train(tiny_data, config="frozen_head", out=folder / "run", **options)


def test_a_run_has_its_result_and_its_predictor(trained: headstart.Run, tiny_data: Path) -> None:
    val = json.loads((trained.path / "summary.json").read_text())["val"]
    assert trained.accuracy == val["accuracy"]
    assert trained.accuracy_ci95 == tuple(val["accuracy_ci95"])
    assert trained.summary.to_json() == json.loads((trained.path / "summary.json").read_text())
    assert f"{val['correct']} of {val['n']} correct" in repr(trained)
    assert trained.report_path.is_file()
    html = trained._repr_html_()
    assert "data:image/png;base64," in html
    assert f"{val['accuracy']:.1%}" in html
    predictor = trained.predictor()
    assert "3 classes" in repr(predictor)
    assert {"predict", "classes"} <= set(dir(predictor))
    found = predictor.predict(tiny_data / "val")  # a folder
    assert len(found) == val["n"]
    assert sum(one.label == Path(one.path or "").parent.name for one in found) == val["correct"]
    assert found[0].label in repr(found[0])


def test_the_options_of_train_are_those_of_the_command_line(trained: headstart.Run, tiny_data: Path) -> None:
    written = load_config([trained.path / "config.yaml"])
    assert (written.optim.lr, written.strategy.name, written.data.root) == (0.01, "frozen_head", str(tiny_data))
    again = headstart.train(replace(written, out=f"{trained.path}-again"))  # a RunConfig
    assert (again.path / "model.safetensors").read_bytes() == (trained.path / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ({"optim.learning_rate": 1}, ["optim.learning_rate", "optim."]),
        ({"optim.lr": "high"}, ["optim.lr", "high"]),
        ({"config": "frozen_heat"}, ["frozen_heat", "frozen_head"]),
        ({"progress": "loud"}, ["progress", "loud", "silent"]),
        ({"train.batch_size": 0}, ["train.batch_size"]),
    ],
)
def test_train_refuses_what_its_command_refuses(
    arguments: dict[str, object], fragments: list[str], tiny_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        headstart.train(tiny_data, out=tmp_path / "run", **arguments)  # type: ignore[arg-type]
    assert [fragment for fragment in fragments if fragment not in str(refused.value)] == []
    assert isinstance(refused.value, ValueError)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="RunConfig"):
        headstart.train(RunConfig(), out=tmp_path / "run")


def test_load_names_a_repository_that_cannot_be_loaded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def download(repository: str, name: str) -> str:
        assert (repository, name) == ("someone/flowers", "model.safetensors")
        return str(model / "model.safetensors")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert headstart.load("hf://someone/flowers").path == model / "model.safetensors"
    with pytest.raises(InputError, match="hf://someone/else"):
        headstart.load("hf://someone/else")
    with pytest.raises(InputError, match="hf://OWNER/NAME"):
        headstart.load(tmp_path / "nowhere")


@pytest.mark.slow
def test_ctrl_c_raises_keyboard_interrupt_once_the_state_is_saved(tiny_data: Path, tmp_path: Path) -> None:
    options = FAST | {"train.epochs": 200, "train.batch_size": 8}
    handler = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt, match="headstart resume"):
        headstart.train(tiny_data, config="fine_tune", out=tmp_path / "run", **options)
    thread.join()
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.slow
def test_training_works_in_a_thread_and_in_a_script_without_a_main_guard(tiny_data: Path, tmp_path: Path) -> None:
    options = FAST | {"data.num_workers": 1, "train.epochs": 1, "train.batch_size": 8}
    runs: list[headstart.Run] = []
    thread = threading.Thread(target=lambda: runs.append(headstart.train(tiny_data, out=tmp_path / "a", **options)))
    thread.start()
    thread.join()
    script = tmp_path / "script.py"
    script.write_text(
        f"import headstart\n"
        f"for name in 'bc':\n"
        f"    print(headstart.train({str(tiny_data)!r}, out={str(tmp_path)!r} + '/' + name, **{options}))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=200)
    assert done.stdout.count("Run(") == 2, done.stderr
    assert done.stderr == ""
    first, *others = (
        runs[0].path / "model.safetensors",
        tmp_path / "b/model.safetensors",
        tmp_path / "c/model.safetensors",
    )
    assert [path.read_bytes() == first.read_bytes() for path in others] == [True, True]


# ------------------------------------------------------------------------------------------------- verify


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), precision="bf16")


def test_verify_returns_what_the_command_prints(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = headstart.verify(model)
    assert capsys.readouterr() == ("", "")
    assert found
    assert found.passed
    assert found.failed == ()
    assert {precision: len(checks) for precision, checks in found.checks.items()} == {"fp32": 7, "bf16": 7}
    assert found.to_json() + "\n" == output_of(capsys, "verify", model, "--json")
    assert json.loads(found.to_json()) == found.to_dict()
    for fragment in ("passed", found.device, "fp32", "bf16"):
        assert fragment in of_few_lines(found)


def test_a_failed_verification_is_false_and_its_repr_says_what_failed(model: Path, tmp_path: Path) -> None:
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1000] ^= 1  # the last bit of a number
    (tmp_path / "model.safetensors").write_bytes(data)
    found = headstart.verify(tmp_path, precision="fp32")
    assert not found
    assert found.tensors_unchanged is False
    values = found.to_dict()
    assert list(values) == ["model", "device", "versions", "checks", "tensors", "passed"]
    assert values["tensors"] is values["passed"] is False
    assert "FAILED" in of_few_lines(found)
    assert "weights" in repr(found)


def test_verify_refuses_what_its_command_refuses(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"precision.*fp8"):
        headstart.verify(model, precision="fp8")
    with pytest.raises(InputError, match=r"device.*gpu"):
        headstart.verify(model, device="gpu")
    with pytest.raises(InputError, match="nowhere"):
        headstart.verify(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------------- evaluate


@pytest.fixture(scope="module")
def evaluated(model: Path, tiny_data: Path) -> Evaluation:
    return headstart.evaluate(model, tiny_data)


def test_evaluate_returns_what_the_command_writes(
    model: Path, tiny_data: Path, evaluated: Evaluation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = headstart.evaluate(model, tiny_data, out=tmp_path / "python.json")
    assert capsys.readouterr() == ("", "")
    assert found == evaluated
    printed = output_of(capsys, "evaluate", model, "--data", tiny_data, "--out", tmp_path / "command.json")
    written = (tmp_path / "command.json").read_text()
    assert written == (tmp_path / "python.json").read_text() == found.to_json() + "\n"
    assert json.loads(written) == found.to_dict()
    assert f"{found.correct} of 15" in printed
    assert sum(map(sum, found.confusion_matrix)) == found.n == 15
    assert found.classes == tuple(sorted(path.name for path in (tiny_data / "val").iterdir()))
    assert [metrics.n for metrics in found.per_class.values()] == [5, 5, 5]
    for fragment in (f"{found.accuracy:.1%}", f"{found.correct} of 15"):
        assert fragment in of_few_lines(found)


@pytest.mark.parametrize("num_classes", [3, 7])
def test_an_evaluation_has_all_metrics_in_the_order_of_the_json_file(num_classes: int) -> None:
    labels = np.arange(20) % num_classes
    logits = np.random.default_rng(0).normal(size=(20, num_classes)).astype(np.float32)
    values = describe(Predictions(logits, labels), [f"class {number}" for number in range(num_classes)])
    found = evaluation_of(values)
    assert json.dumps(found.to_dict()) == json.dumps(values)
    assert (found.top5_accuracy is None) == (num_classes < 6)
    hash(found.accuracy_ci95)
    with pytest.raises(FrozenInstanceError):
        found.accuracy = 1.0  # type: ignore[misc]


def test_evaluate_lists_what_it_skipped(
    model: Path, image_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = image_folder(train=1, val=2)
    broken = sorted((data / "val").rglob("*.*"))[0]
    broken.write_bytes(b"")
    with pytest.raises(InputError, match=re.escape(broken.name)) as refused:
        headstart.evaluate(model, data)
    assert "on_bad_file" in str(refused.value)
    assert "--" not in str(refused.value)
    with pytest.raises(SystemExit):
        main(["evaluate", str(model), "--data", str(data)])
    assert " --on_bad_file skip" in capsys.readouterr().err
    found = headstart.evaluate(model, data, on_bad_file="skip")
    assert [file.path for file in found.skipped] == [broken.relative_to(data).as_posix()]
    assert found.n == 5
    assert "1 skipped" in of_few_lines(found)
    assert broken.name in output_of(capsys, "evaluate", model, "--data", data, "--on_bad_file", "skip")


def test_evaluate_refuses_what_its_command_refuses(model: Path, tiny_data: Path, tmp_path: Path) -> None:
    for arguments, fragments in (
        ({"out": tmp_path / "no" / "a.json"}, ("out ", "no")),
        ({"out": tmp_path}, ("out ", "folder")),
        ({"on_bad_file": "skp"}, ("on_bad_file", "skp", "did you mean skip")),
        ({"split": "tset"}, ("tset",)),
        ({"image_column": "file"}, ("image_column",)),
    ):
        with pytest.raises(InputError) as refused:
            headstart.evaluate(model, tiny_data, **arguments)
        for fragment in fragments:
            assert fragment in str(refused.value)
        assert "--" not in str(refused.value)
    with pytest.raises(InputError, match="nowhere"):
        headstart.evaluate(model, tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------------- compare

IMAGES = [(f"image {number}", ("ants", "bees")[number % 2]) for number in range(40)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four runs: the first predicts ants for every image, each other one is correct for more images."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        write_evaluated_run(
            folder / name, IMAGES, [label if number < correct else "ants" for number, (_, label) in enumerate(IMAGES)]
        )
        for name, correct in (("always_ants", 0), ("a_little_better", 4), ("better", 30), ("best", 40))
    ]


def test_compare_returns_what_the_command_prints(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = headstart.compare(runs[0], str(runs[1]), runs[3], out=tmp_path / "python.html")
    assert capsys.readouterr() == ("", "")
    printed = output_of(capsys, "compare", runs[0], runs[1], runs[3], "--json", "--out", tmp_path / "command.html")
    assert printed == found.to_json() + "\n"
    assert json.loads(printed) == found.to_dict()
    assert (tmp_path / "command.html").read_text() == (tmp_path / "python.html").read_text()
    keys = list(json.loads(printed)["comparisons"][0])
    assert keys[:2] == ["first", "second"]
    assert keys[-3:] == ["images_needed", "in_words", "disagreements"]
    assert [run.correct for run in found.runs] == [20, 22, 40]
    assert [pair.verdict for pair in found.comparisons] == ["not proven", "better"]
    assert [pair.gained for pair in found.comparisons] == [2, 20]
    (first, *others) = found.comparisons[1].disagreements
    assert (first.label, first.first, first.second, first.correct) == ("bees", "ants", "bees", "second")
    assert len(others) == 19


def test_a_run_can_be_passed_in_place_of_its_folder(
    runs: list[Path], model: Path, tiny_data: Path, evaluated: Evaluation
) -> None:
    assert headstart.compare(*map(headstart.Run, runs)) == headstart.compare(*runs)
    assert headstart.evaluate(headstart.Run(model), tiny_data) == evaluated


def test_the_repr_of_a_comparison_gives_each_verdict_in_a_few_lines(runs: list[Path]) -> None:
    found = headstart.compare(*runs)
    text = of_few_lines(found)
    for run, fragment in zip(runs, ("40 images", "not proven", "better", "+50.0 points"), strict=True):
        assert any(str(run) in line and fragment in line for line in text.splitlines())
    many = replace(found, runs=found.runs + found.runs[1:], comparisons=found.comparisons * 2)
    assert "3 more" in of_few_lines(many)


def test_compare_refuses_what_its_command_refuses(runs: list[Path], tmp_path: Path) -> None:
    other = write_evaluated_run(tmp_path / "other", IMAGES[:30], ["ants"] * 30)
    for folders, arguments, fragments in (
        (runs[:1], {}, ("two",)),
        ([runs[0], runs[0]], {}, ("once", runs[0].name)),
        (runs[:2], {"out": tmp_path / "page.txt"}, ("out ", "page.txt", ".html")),
        ([runs[0], other], {}, ("common=True", "30 images")),
        ([runs[0], tmp_path / "nowhere"], {}, ("nowhere",)),
    ):
        with pytest.raises(InputError) as refused:
            headstart.compare(*folders, **arguments)
        for fragment in fragments:
            assert fragment in str(refused.value)
        assert "--" not in str(refused.value)
    assert headstart.compare(runs[0], other, common=True).runs[0].n == 30


# ------------------------------------------------------------------------------------------------- export


@pytest.mark.slow
def test_export_returns_what_the_command_writes(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state_of_the_process()
    found = headstart.export(model, "torchvision", tmp_path / "python.safetensors")
    assert capsys.readouterr() == ("", "")
    assert state_of_the_process() == before
    command = ("export", model, "--format", "torchvision", "--out", tmp_path / "command.safetensors")
    printed = output_of(capsys, *command)
    assert f"{found.parity.drawn.n} drawn" in printed
    assert (tmp_path / "command.safetensors").read_bytes() == (tmp_path / "python.safetensors").read_bytes()
    written = (tmp_path / "command.safetensors.parity.json").read_text()
    assert written.rstrip("\n") == found.to_json()
    assert json.loads(written) == found.to_dict()
    assert found.path == tmp_path / "python.safetensors"
    assert found.classes == headstart.load(model).classes
    assert found.parity.drawn.largest <= found.parity.tolerance
    assert found.parity.validation is None
    for fragment in ("torchvision", "python.safetensors", "not compared"):
        assert fragment in of_few_lines(found)


@pytest.mark.slow
def test_a_refused_export_raises_a_public_exception_and_writes_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "torchvision", replace(FORMATS["torchvision"], tolerance=-1.0))
    with pytest.raises(headstart.ExportRefused, match=r"torchvision .* drawn images"):
        headstart.export(model, "torchvision", tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_export_refuses_what_its_command_refuses(model: Path, tmp_path: Path) -> None:
    (tmp_path / "there.onnx").write_text("mine")
    for format, out, arguments, fragments in (
        ("onx", "m.onnx", {}, ("onx", "did you mean onnx")),
        ("tensorflow", "m.pb", {}, ("tensorflow", "format is one of")),
        ("onnx", "m.pt", {}, ("out ", "m.pt", ".onnx")),
        ("onnx", "there.onnx", {}, ("there.onnx", "overwrite=True")),
        ("onnx", "m.onnx", {"allow_loss": 0.1}, ("allow_loss", "int8")),
        ("int8", "m.onnx", {"allow_loss": 2}, ("allow_loss is 2", "between 0 and 1")),
        ("onnx", "m.onnx", {"images": 0}, ("images is 0", "at least 1")),
        ("torchvision", "m.safetensors", {"data": tmp_path / "gone"}, ("data ", "gone")),
    ):
        with pytest.raises(InputError) as refused:
            headstart.export(model, format, tmp_path / out, **arguments)
        for fragment in fragments:
            assert fragment in str(refused.value)
        assert "--" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]


# ------------------------------------------------------------------------------------------------- check_data


@pytest.fixture(scope="module")
def faulty_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with near copies, an empty file and a class of one image."""
    root = tmp_path_factory.mktemp("faulty") / "data"
    for name, count in (("a", 4), ("b", 4), ("c", 1)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").write_bytes(encoded(scene(ord(name), number), "PNG"))
    (root / "a" / "copy.jpg").write_bytes(altered(scene(ord("a"), 0), 0))
    (root / "b" / "empty.png").write_bytes(b"")
    return root


@pytest.mark.slow
def test_check_data_returns_what_the_command_writes(
    faulty_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"labels": True, "image_size": 32, "folds": 2, "bank": tmp_path / "bank"}
    found = headstart.check_data(faulty_data, out=tmp_path / "python", **options)
    assert capsys.readouterr() == ("", "")
    arguments = ("--labels", "--image_size", 32, "--folds", 2, "--bank", tmp_path / "bank")
    printed = output_of(capsys, "data", "check", faulty_data, "--out", tmp_path / "command", *arguments)
    files = sorted(path.name for path in (tmp_path / "command").iterdir())
    assert "doctor.json" in files
    for name in files:
        assert (tmp_path / "command" / name).read_bytes() == (tmp_path / "python" / name).read_bytes()
    written = (tmp_path / "command" / "doctor.json").read_text()
    assert written == found.to_json() + "\n"
    assert json.loads(written) == found.to_dict()
    assert (found.num_files, found.num_images, found.classes) == (11, 10, ("a", "b", "c"))
    assert found.images_per_class == {"a": 5, "b": 4, "c": 1}
    assert {"near_duplicate", "empty_file"} <= found.counts.keys()
    assert sum(found.counts.values()) == len(found.findings)
    assert found.label_check is not None
    assert found.label_check.classes == ("a", "b")
    for fragment in (str(found.num_files), "10 usable images", "3 classes"):
        assert fragment in printed
        assert fragment in of_few_lines(found)


def test_the_repr_of_good_data_says_that_there_are_no_problems(tmp_path: Path) -> None:
    good_folder(tmp_path / "data", train=10, val=10)
    found = headstart.check_data(tmp_path / "data", weights="never opened")
    assert found.findings == ()
    assert found.images_per_class == {f"{split}/{name}": 10 for split in ("train", "val") for name in found.classes}
    for fragment in ("60 usable images", "no problems found"):
        assert fragment in of_few_lines(found)


def test_check_data_refuses_what_its_command_refuses(faulty_data: Path, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "fixes.csv").write_text("edited")
    for data, arguments, fragments in (
        (tmp_path / "nowhere", {}, ("nowhere",)),
        (faulty_data, {"out": tmp_path / "report"}, ("out ", "report")),
        (faulty_data, {"out": faulty_data / "report"}, ("out ", "inside the data")),
        (faulty_data, {"folds": 1}, ("folds", "1")),
        (faulty_data, {"image_column": "file"}, ("image_column",)),
    ):
        with pytest.raises(InputError) as refused:
            headstart.check_data(data, **arguments)
        for fragment in fragments:
            assert fragment in str(refused.value)
        assert "--" not in str(refused.value)


# ------------------------------------------------------------------------------------------------- all of them

USER_PROGRAM = """
import os
from pathlib import Path
from typing import Any

import headstart


def trained(folder: Path) -> list[str]:
    options: dict[str, Any] = {"optim.lr": 0.01}
    run: headstart.Run = headstart.train("photos", config="frozen_head", out=folder, **options)
    run = headstart.train("photos", config="frozen_head", **{"optim.lr": 0.01})
    print(headstart.evaluate(run, "photos"), headstart.compare(run, folder), bool(headstart.verify(run)))
    return [prediction.label or "" for prediction in headstart.load(run).predict(["a.jpg", Path("b.jpg")])]


def accuracy(run: Path, data: str) -> tuple[float, tuple[float, float]]:
    found = headstart.evaluate(run, data, split="val", on_bad_file="skip", out="results.json")
    wrong: list[str] = [file.reason for file in found.skipped]
    recall: dict[str, float | None] = {name: metrics.recall for name, metrics in found.per_class.items()}
    print(found, found.to_json(), wrong, recall, found.confusion_matrix[0][0] + 1)
    return found.accuracy, found.accuracy_ci95


def better(first: str, second: os.PathLike[str]) -> str | None:
    found = headstart.compare(first, second, common=True)
    pair = found.comparisons[0]
    return pair.disagreements[0].path if pair.verdict == "better" and pair.p_holm < 0.05 else None


def chosen(data: Path) -> str:
    found: headstart.Choice = headstart.choose(data, backbones=["lite0", "resnet18"], sizes=[160, 224], out="choice")
    speeds: list[float] = [candidate.train_images_per_s for candidate in found.candidates]
    print(found, speeds, found.expected_ci95[0], found.comparisons[0].images_needed)
    return found.command


def reproduced(run: str) -> bool:
    found: headstart.Verification = headstart.verify(run, device="cpu", precision="fp32")
    largest: float = max(check.difference for check in found.checks["fp32"])
    return bool(found) and found.passed and largest < 1


def exported(run: str) -> Path | None:
    try:
        found: headstart.Export = headstart.export(run, "onnx", "model.onnx", images=100, overwrite=True)
    except headstart.ExportRefused as refusal:
        print(refusal.args)
        return None
    except headstart.InputError as mistake:
        raise ValueError(str(mistake)) from mistake
    return found.path if found.parity.drawn.largest < 1e-4 else None


def problems(data: Path) -> dict[str, int]:
    found: headstart.DataReport = headstart.check_data(data, labels=True, bank=Path("bank"))
    print([path for finding in found.findings for path in finding.paths], found.census.median)
    return found.counts
"""


@pytest.mark.slow
def test_a_users_program_passes_a_strict_type_checker(tmp_path: Path) -> None:
    """The program uses every public function, and two mistakes are found in it."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("TYPES NOT TESTED: mypy is not installed; pip install 'headstart[dev]'")
    for function in ("train", "load", "evaluate", "compare", "choose", "verify", "export", "check_data"):
        assert f"headstart.{function}(" in USER_PROGRAM
    wrong = USER_PROGRAM.replace("images=100", "images='all'").replace("-> tuple[float, tuple", "-> tuple[str, tuple")
    (tmp_path / "right.py").write_text(USER_PROGRAM)
    (tmp_path / "wrong.py").write_text(wrong)
    (tmp_path / "mypy.ini").write_text("[mypy]\n[mypy-torch.*,numpy.*]\nfollow_imports = skip\n")  # they take a minute
    # the package as an installed one: its types count only because it contains py.typed
    environment = {**os.environ, "MYPYPATH": "", "PYTHONPATH": str(Path(headstart.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "right.py", "wrong.py"],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=tmp_path,
        env=environment,
    )
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 2, done.stdout + done.stderr
    assert all(line.startswith("wrong.py:") for line in errors), done.stdout


def state_that_imports_change() -> dict[str, object]:
    """Importing other libraries adds to these: scipy and accelerate filters of warnings, torch a cache folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    return {"environment": environment, "warnings": list(warnings.filters)}


CALLS: dict[str, Callable[[Path, Path, Path], object]] = {
    "train": lambda model, data, out: headstart.train(
        data, config="frozen_head", out=out / f"run-{len(list(out.iterdir()))}", **FAST, **{"runtime.threads": 1}
    ),
    "train on images": lambda model, data, out: headstart.train(
        data,
        config="fine_tune",
        out=out / f"run-{len(list(out.iterdir()))}",
        **FAST | {"data.num_workers": 1, "train.epochs": 1},
    ),
    "load": lambda model, data, out: headstart.load(model).predict(data / "val"),
    "evaluate": lambda model, data, out: headstart.evaluate(model, data),
    "verify": lambda model, data, out: headstart.verify(model, precision="fp32"),
    "check_data": lambda model, data, out: headstart.check_data(data, image_size=32, bank=out / "bank"),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_process_of_the_user_is_as_before_and_a_second_call_gives_the_same(
    name: str, model: Path, faulty_data: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(3)  # not the number of cores of the usual machine
    data = faulty_data if name == "check_data" else tiny_data
    before = state_of_the_process()
    first = CALLS[name](model, data, tmp_path)
    before |= state_that_imports_change()
    second = CALLS[name](model, data, tmp_path)
    after = state_of_the_process() | state_that_imports_change()
    assert [key for key in before if before[key] != after[key]] == []
    assert capsys.readouterr() == ("", "")
    if name == "load":
        assert repr(second) == repr(first)
    elif isinstance(first, headstart.Run):
        assert second.summary.val == first.summary.val  # type: ignore[attr-defined]
    else:
        assert second.to_dict() == first.to_dict()  # type: ignore[attr-defined]
