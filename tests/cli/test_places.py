"""Where commands write: outside the data, on this machine, and ~ is the home folder."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.runs import exit_code

import headstart
from headstart import InputError
from headstart.config import DataConfig, ModelConfig, RunConfig, RuntimeConfig, TrainConfig
from headstart.config_io import load_config
from headstart.files import write_atomically
from headstart.runs.files import read_file
from headstart.runs.folder import check_start, choose_folder, describe_place

BUNDLED = ("--model.weights", "bundled")


@pytest.fixture
def photos(image_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of images in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    image_folder(train=3, name="photos")
    return "photos"


@pytest.fixture
def model(bf16_run: Path, tmp_path: Path) -> Path:
    """A run folder whose configuration names the folder photos."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").symlink_to(bf16_run / "model.safetensors")
    (tmp_path / "run" / "config.yaml").write_text("data: {root: photos}\n")
    return tmp_path / "run"


COMMANDS = {
    "train": ("train", "photos", "--out", "photos/runs/first", *BUNDLED),
    "train below a class": ("train", "photos", "--out", "photos/red_checks/first", *BUNDLED),
    "train by a link": ("train", "photos", "--out", "link/first", *BUNDLED),
    "train several seeds": ("train", "photos", "--out", "photos/five", "--train.seeds", "5", *BUNDLED),
    "choose": ("choose", "photos", "--out", "photos/choice"),
    "data check": ("data", "check", "photos", "--out", "photos/checked"),
    "data apply": ("data", "apply", "fixes.csv", "--data", "photos", "--out", "photos/new"),
    "predict": ("predict", "run", "photos", "--out", "photos/predictions/"),
    "export": ("export", "run", "--format", "torchvision", "--out", "photos/x.safetensors"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_result_inside_the_data_is_refused(
    name: str, photos: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("link").symlink_to(photos)
    before = sorted(Path(photos).rglob("*"))
    assert exit_code(*COMMANDS[name]) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert "lies inside the data" in complaint
    assert str(Path(photos).absolute()) in complaint
    assert sorted(Path(photos).rglob("*")) == before


def test_a_bank_inside_the_data_is_refused(photos: str) -> None:
    from headstart.training.run import run

    config = RunConfig(
        out="run",
        data=DataConfig(root=photos, image_size=32),
        model=ModelConfig(weights="bundled"),
        runtime=RuntimeConfig(bank=f"{photos}/bank"),
    )
    with pytest.raises(InputError, match=r"runtime\.bank photos/bank lies inside"):
        run(config)
    assert not Path(photos, "bank").exists()


@pytest.mark.parametrize(("folder", "root"), [("photos", "."), ("photos/red_checks", ".."), ("photos", "../photos")])
def test_a_run_that_begins_inside_the_data_lies_beside_them(
    folder: str, root: str, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    found = choose_folder("", strategy="frozen_head", root=root)
    assert found == tmp_path / "runs" / "frozen_head-001"
    assert str(found) in describe_place("", found)
    check_start(found, resume="never", root=root)
    monkeypatch.chdir(tmp_path)
    usual = choose_folder("", strategy="frozen_head", root=photos)
    assert usual == Path("runs/frozen_head-001")
    assert describe_place("", usual) == ""


ADDRESSES = ["file:r", "s3:r", "s3://bucket/r", "file:///tmp/r", "hdfs:r", "gs://bucket/r", "custom+x://r"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_in_place_of_a_path_is_refused(
    address: str, photos: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().iterdir())
    for command in (
        ("train", photos, "--out", address, *BUNDLED),
        ("choose", photos, "--out", address),
        ("predict", "run", photos, "--out", f"{address}.parquet"),
        ("predict", "run", photos, "--out", f"{address}/"),
        ("export", "run", "--format", "torchvision", "--out", f"{address}.safetensors"),
        ("evaluate", "run", "--data", photos, "--out", f"{address}.json"),
        ("data", "check", photos, "--out", address),
        ("data", "apply", "fixes.csv", "--data", photos, "--out", address),
        ("data", "demo", address),
        ("demo", address),
    ):
        assert exit_code(*command) == 2, command
        complaint = capsys.readouterr().err
        assert complaint.count("\n") == 1
        assert "is an address" in complaint, command
        assert f" {address}" in complaint, command
    assert sorted(Path().iterdir()) == before


def test_a_tilde_is_the_home_folder_in_the_configuration(photos: str, tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    Path("a.yaml").write_text("out: ~/runs/first\ndata: {root: ~/photos}\nruntime: {bank: ~/bank}\n")
    for config in (
        load_config(["a.yaml"]),
        load_config([], {"out": "~/runs/first", "data.root": "~/photos", "runtime.bank": "~/bank"}),
        RunConfig(out="~/runs/first", data=DataConfig(root="~/photos"), runtime=RuntimeConfig(bank="~/bank")),
    ):
        assert (config.out, config.data.root) == (f"{home}/runs/first", f"{home}/photos")
        assert config.runtime.bank == f"{home}/bank"
    for name in ("groups.csv", "groups.tsv", "GROUPS.CSV"):
        assert DataConfig(groups=f"~/{name}", split="stratified").groups == f"{home}/{name}"
    assert DataConfig(groups="~/(p[0-9])", split="stratified").groups == "~/(p[0-9])"  # a regular expression
    assert ModelConfig(weights="~/w.pth").weights == f"{home}/w.pth"
    assert TrainConfig(resume="~/r/checkpoints/step_1").resume == f"{home}/r/checkpoints/step_1"
    Path("home/mine.yaml").write_text("seed: 3\n")
    assert load_config(["~/mine.yaml"]).seed == 3


@pytest.mark.slow
def test_a_tilde_is_the_home_folder_in_arguments(
    photos: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.rename(tmp_path / "home" / "run")
    Path(photos).rename(tmp_path / "home" / "photos")
    assert exit_code("data", "check", "~/photos", "--out=~/checked") == 0
    assert exit_code("predict", "~/run", "~/photos", "--out=~/a.parquet", "--num_workers", "0") == 0
    assert exit_code("inspect", "~/run") == 0
    assert exit_code("evaluate", "~/run", "--data", "~/photos", "--out=~/a.json") == 0
    assert {path.name for path in Path("home").iterdir()} >= {"checked", "a.parquet", "a.json"}
    assert not Path("~").exists()
    assert headstart.load("~/run").classes
    assert exit_code("inspect", "~/nowhere") == 2
    assert str(tmp_path / "home" / "nowhere") in capsys.readouterr().err


def test_names_like_an_address_are_names_for_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa

    monkeypatch.chdir(tmp_path)
    table = pa.table({"path": ["a"]})
    for name in ("lr:0.1/a.parquet", "s3:x/a.parquet", "~x/a.parquet"):
        Path(name).parent.mkdir()
        write_atomically(Path(name), lambda path: pq.write_table(table, path))
        assert read_file(Path(name).parent, "a.parquet", pq.read_table).equals(table)
        assert [path.name for path in Path(name).parent.iterdir()] == ["a.parquet"]
