"""The run folder and the model file: written atomically and reproducibly, refused if foreign or damaged."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from support.models import write_model
from torchvision.models import resnet18

from headstart.backbones import RESNET18
from headstart.data.transforms import Preprocess
from headstart.errors import InputError
from headstart.files import check_links
from headstart.model.build import build_model
from headstart.model.calibration import Calibration, fit_temperature
from headstart.model.conformal import fit_conformal
from headstart.model.find_model import find_model
from headstart.model.inspect_command import inspect_command
from headstart.model.model_file import (
    ModelInfo,
    load_model,
    read_info,
    save_model,
    save_tensors,
    write_atomically,
)
from headstart.model.open_set import fit_open_set
from headstart.runs.folder import (
    RunFolder,
    check_new_folder,
    choose_folder,
    create_folder,
    is_unfinished,
    predictions_table,
)

INFO = ModelInfo(
    measured_on="network",
    classes=("ants", "bees & wasps", "日本"),
    preprocess=Preprocess(64, 73),
    strategy="frozen_head",
    mixed_precision="no",
    channels_last=True,
    eval_batch_size=64,
    manifest_sha256="ab" * 32,
    weights="bundled",
    weights_sha256=None,
    seed=2**62 + 1,
    versions={"torch": "2.6", "python": "3.11"},
    metrics={"val": {"n": 3, "accuracy": 2 / 3}},
)


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_model(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------------------------------- writing


def test_a_file_is_written_under_its_name_only(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.txt", lambda path: path.write_text("new"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")

    def write(path: Path) -> None:
        path.write_text("ne")
        assert (tmp_path / "a.txt").read_text() == "old"
        path.write_text("new")

    write_atomically(tmp_path / "a.txt", write)
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "a.txt", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


SAVE = """
import sys
import torch
from pathlib import Path
from headstart.model.model_file import save_tensors
generator = torch.Generator().manual_seed(0)
tensors = {name: torch.randn(3, 5, generator=generator) for name in ("b", "a", "c.d")}
tensors["count"] = torch.tensor(7)
metadata = {name: name.upper() for name in ("x", "y", "headstart.z", "w", "ä")}
save_tensors(Path(sys.argv[1]), tensors, metadata)
"""


@pytest.mark.slow
def test_the_same_tensors_give_the_same_bytes_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{number}.safetensors" for number in range(9)]
    for path in paths[1:]:  # the library orders its header by a hash with a new seed each time
        monkeypatch.setattr(sys, "argv", ["", str(path)])
        exec(SAVE, {})
    subprocess.run([sys.executable, "-c", SAVE, str(paths[0])], check=True, timeout=120)
    assert len({path.read_bytes() for path in paths}) == 1


def test_what_is_saved_is_loaded_by_the_library(tmp_path: Path) -> None:
    tensors = {
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "channels_last": torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(
            memory_format=torch.channels_last
        ),
        "count": torch.tensor(3),
        "empty": torch.zeros(0, 2),
        "needs_grad": torch.ones(2, requires_grad=True),
    }
    save_tensors(tmp_path / "a.safetensors", tensors, {"note": 'ä"\n'})
    loaded = load_file(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "note": 'ä"\n'}


# ------------------------------------------------------------------------------------------------- the model file


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, build_model(RESNET18, 3, tensors=None, head_init="normal", seed=1), INFO)
    return path


def test_the_description_of_the_model_is_read_from_its_file(model_file: Path) -> None:
    assert read_info(model_file) == INFO


def test_the_calibration_travels_in_the_header_and_the_file_still_opens_in_torchvision(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    logits, features, labels = rng.normal(size=(60, 3)), rng.normal(size=(60, 512)) ** 2, np.arange(60) % 3
    open_set = fit_open_set(features, labels)
    conformal = fit_conformal(logits, labels, exact=True)
    calibration = Calibration(fit_temperature(logits, labels), "validation logits", 60, conformal, open_set)
    path = tmp_path / "model.safetensors"
    save_model(
        path,
        build_model(RESNET18, 3, tensors=None, head_init="normal", seed=1),
        dataclasses.replace(INFO, calibration=calibration),
    )
    theirs = resnet18(num_classes=3)
    theirs.load_state_dict(load_file(path), strict=True)
    read = read_info(path).calibration
    assert read is not None
    assert np.array_equal(read.probabilities(logits), calibration.probabilities(logits))
    assert np.array_equal(read.prediction_sets(logits), calibration.prediction_sets(logits))
    assert np.array_equal(read.distance(features), calibration.distance(features))


def test_a_file_of_before_there_was_calibration_is_read(model_file: Path, tmp_path: Path) -> None:
    with safe_open(model_file, framework="pt") as file:
        header = {name: text for name, text in file.metadata().items() if name != "headstart.calibration"}
    save_file(load_file(model_file), tmp_path / "old.safetensors", metadata=header)
    assert read_info(tmp_path / "old.safetensors") == INFO


@pytest.mark.parametrize(
    "damage",
    [
        '{"temperature": 1.0}',
        "7",
        '{"temperature": "warm", "conformal": {}, "open_set": null, "n": 3, "fitted_on": "x"}',
        '{"temperature": 1.0, "conformal": {}, "open_set": null, "n": 3, "fitted_on": "x"}',
    ],
)
def test_a_damaged_calibration_is_refused(model_file: Path, tmp_path: Path, damage: str) -> None:
    with safe_open(model_file, framework="pt") as file:
        header = file.metadata() | {"headstart.calibration": damage}
    save_file(load_file(model_file), tmp_path / "damaged.safetensors", metadata=header)
    assert "calibration" in refusal(tmp_path / "damaged.safetensors").replace(str(tmp_path), "")


def test_reference_features_of_another_width_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    open_set = fit_open_set(rng.normal(size=(60, 100)) ** 2, labels)
    calibration = Calibration(
        1.0, "validation logits", 60, fit_conformal(rng.normal(size=(60, 3)), labels, exact=True), open_set
    )
    save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(1)}, header(calibration=calibration.to_json()))
    assert re.search(r"\b100\b", refusal(tmp_path / "a.safetensors"))


ALTERED = {
    "classes": [None, [], ["a", 3, "c"], ["a", "a"], ["\ud800", "b", "c"], "abc"],
    "preprocess": [None, [], *(INFO.preprocess.to_json() | {"resize_size": wrong} for wrong in ("256", 0, True, 1.5))],
    "golden": [[], {"classes": ["a"]}, {"classes": ["a"], "inputs": [3]}],
    "metrics": [None, [], {"val": {"accuracy": "high"}}, {"val": {"accuracy": 1, "accuracy_ci95": None}}],
    "versions": [None, [], {"torch": 2}],
    "calibration": [{"temperature": "1.7"}, {"temperature": float("nan")}],
    "mixed_precision": [None, "int4"],
    "eval_batch_size": ["64", 0],
    "seed": [None],
}


@pytest.mark.parametrize("name", ALTERED)
def test_a_header_field_of_the_wrong_type_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for value in ALTERED[name]:
        text = json.dumps(value).encode()
        save_tensors(path, {"x": torch.zeros(1)}, header(**{name: text}))
        assert re.search(rf"\b{name}\b", refusal(path)), value
        with pytest.raises(InputError, match=rf"\b{name}\b"):
            inspect_command(str(path), as_json=False)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"1" * 5000, b"{"])
def test_a_header_that_is_not_json_is_refused(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"x": torch.zeros(1)}, header(seed=text))
    assert "header" in refusal(path)
    with pytest.raises(InputError, match=re.escape(str(path))):
        inspect_command(str(path), as_json=False)


def test_the_header_names_a_weights_file_without_its_folder(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(1)}, header(weights="/home/me/mine.pth"))
    assert read_info(tmp_path / "a.safetensors").weights == "mine.pth"


def test_the_model_comes_back_in_eval_mode_with_its_numbers(model_file: Path) -> None:
    model, info = load_model(model_file)
    expected = build_model(RESNET18, 3, tensors=None, head_init="normal", seed=1).state_dict()
    assert info == INFO
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_the_model_file_opens_in_torchvision(model_file: Path) -> None:
    theirs = resnet18(num_classes=3)
    theirs.load_state_dict(load_file(model_file), strict=True)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(theirs.eval()(pixels), load_model(model_file)[0](pixels))


def test_a_file_holds_fp32_tensors_in_every_precision(model_file: Path) -> None:
    assert {value.dtype for value in load_file(model_file).values()} == {torch.float32, torch.int64}


def test_foreign_safetensors_are_refused(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(2, 2)}, tmp_path / "foreign.safetensors", metadata={"format": "pt"})
    assert "headstart" in refusal(tmp_path / "foreign.safetensors")


def test_safetensors_without_a_header_are_refused(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(2, 2)}, tmp_path / "bare.safetensors")
    assert "headstart" in refusal(tmp_path / "bare.safetensors")


@pytest.mark.parametrize("data", [b"", b"not a model\n" * 30, b"\x00" * 64], ids=["empty", "text", "zeros"])
def test_a_file_of_something_else_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    assert "as safetensors" in refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize("kept", [4, 500, 100_000, -1])
def test_a_truncated_model_file_is_refused(kept: int, model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(model_file.read_bytes()[:kept])
    assert "as safetensors" in refusal(tmp_path / "cut.safetensors")


def header(**changes: object) -> dict[str, str]:
    """The header of INFO with fields changed, or left out where the change is None."""
    fields = dataclasses.asdict(INFO) | changes
    return {
        f"headstart.{name}": value.decode() if isinstance(value, bytes) else json.dumps(value)
        for name, value in fields.items()
        if name not in changes or value is not None
    }


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"schema": 2}, r"schema 2\b.*\b1\b"),
        ({"schema": None}, "schema"),
        ({"classes": None}, "classes"),
        ({"temperature": 1.0}, "temperature"),
        ({"preprocess": INFO.preprocess.to_json() | {"crop": "five"}}, "preprocessing"),
        ({"preprocess": {"image_size": 64}}, "preprocessing"),
        ({"seed": b"{not json"}, "header"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_header_of_another_version_is_refused(changes: dict[str, object], wanted: str, tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(1)}, header(**changes))
    with pytest.raises(InputError, match=wanted):
        read_info(tmp_path / "a.safetensors")


def test_tensors_that_do_not_fit_the_classes_are_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", {"fc.bias": torch.zeros(2)}, header())
    assert re.search(r"resnet18 .*\b3 classes", refusal(tmp_path / "a.safetensors"))


def test_a_model_is_found_by_its_folder_and_by_its_file(model_file: Path) -> None:
    assert find_model(model_file) == model_file
    assert find_model(str(model_file.parent)) == model_file


def test_a_path_that_is_not_a_run_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    for name, pattern in {"nowhere": "", "empty": r".*model\.safetensors", "notes.txt": r".*\.safetensors"}.items():
        with pytest.raises(InputError, match=re.escape(str(tmp_path / name)) + pattern):
            find_model(tmp_path / name)


# ------------------------------------------------------------------------------------------------- the run folder


def test_runs_are_numbered_from_1_and_no_number_is_used_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        path = choose_folder("", strategy="fine_tune", root="data")
        assert path == Path(f"runs/fine_tune-00{number}")
        create_folder(path)
    assert choose_folder("here", strategy="fine_tune", root="data") == Path("here")


def test_a_new_or_an_empty_folder_is_free(tmp_path: Path) -> None:
    check_new_folder(tmp_path)
    check_new_folder(tmp_path / "a/b/c")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter").touch()
    for name, pattern in {
        "run": "headstart resume",
        "mine": "empty",
        "mine/letter": "file",
        "mine/letter/x": "file",
    }.items():
        with pytest.raises(InputError, match=rf"--out {tmp_path / name}\b.*{pattern}"):
            check_new_folder(tmp_path / name)


@pytest.mark.parametrize("name", ["gone", "gone/run", "loop", "loop/"])
def test_a_link_to_nothing_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=r"is a link to (nowhere|loop), which cannot be reached; remove the link"):
        check_links(f"{tmp_path}/{name}")
    with pytest.raises(InputError, match=r"--out .* is a link to"):
        check_new_folder(tmp_path / name)
    os.symlink(tmp_path, tmp_path / "here")
    check_links(tmp_path / "here/run")


def test_metrics_after_a_step_and_an_incomplete_line_are_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3):
        folder.log({"step": step, "loss": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 4, "lo')
    folder.discard_metrics_after(3, epoch=0)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    folder.discard_metrics_after(1, epoch=0)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'


@pytest.mark.parametrize(
    ("step", "epoch", "kept"), [(2, 0, ["probe", 1, 2]), (2, 1, ["probe", 1, 2, "epoch"]), (0, 0, [])]
)
def test_metrics_of_an_epoch_that_is_evaluated_again_are_removed(tmp_path: Path, step, epoch, kept) -> None:
    """A checkpoint of the last step of an epoch may have been written before or after the evaluation."""
    folder = RunFolder(tmp_path)
    folder.log({"step": 0, "epoch": 0, "name": "probe"})
    for number in (1, 2):
        folder.log({"step": number, "name": number})
    folder.log({"step": 2, "epoch": 1, "name": "epoch"})
    folder.discard_metrics_after(step, epoch=epoch)
    assert [json.loads(line)["name"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == kept


def test_two_runs_that_begin_at_once_get_a_folder_each(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = choose_folder("", strategy="fine_tune", root="data")  # by both, before either has made it
    made = [create_folder(chosen, new=True, numbered=True).path.name for _ in range(2)]
    assert made == ["fine_tune-001", "fine_tune-002"]
    create_folder(tmp_path / "named", new=True)
    with pytest.raises(InputError, match=f"--out {tmp_path / 'named'}"):
        create_folder(tmp_path / "named", new=True)


def test_half_written_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / ".config.yaml.0123456789ab.tmp").touch()
    assert is_unfinished(tmp_path)
    create_folder(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoints"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.yaml").touch()  # somebody's project
    assert not is_unfinished(tmp_path / "mine")


def test_the_table_of_predictions_names_its_classes_in_order() -> None:
    table = predictions_table(
        ids=["1", "2"],
        paths=["a.jpg", "b.jpg"],
        labels=["b", "b"],
        probabilities=[[0.25, 0.75], [0.5, 0.5]],
        classes=["b", "ä"],
    )
    assert table.column_names == ["id", "path", "label", "predicted", "probabilities"]
    assert table["predicted"].to_pylist() == ["ä", "b"]
    assert json.loads(table.schema.metadata[b"classes"]) == ["b", "ä"]


def test_inspect_lists_the_tensors_only_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_model(tmp_path) / "model.safetensors"
    inspect_command(str(path), as_json=False)
    short = capsys.readouterr().out
    assert "62 tensors" in short or "122 tensors" in short
    assert "conv1.weight" not in short
    inspect_command(str(path), as_json=False, tensors=True)
    assert "conv1.weight  F32 [64, 3, 7, 7]" in capsys.readouterr().out
    inspect_command(str(path), as_json=True)
    assert "conv1.weight" in json.loads(capsys.readouterr().out)["tensors"]
