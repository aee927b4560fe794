"""Backbone weights by name or path: what loads, what is refused, and nothing that runs code."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18, resnet34

from headstart.errors import InputError
from headstart.weights import BUNDLED, BUNDLED_SHA256, Weights, ensure_available, load_weights


@pytest.fixture(scope="module")
def backbone() -> dict[str, torch.Tensor]:
    """A ResNet-18 of random numbers under torchvision's keys, its head included."""
    torch.manual_seed(0)
    return resnet18(num_classes=7).state_dict()


def obtain(source: str) -> Weights:
    ensure_available(source)
    return load_weights(source)


def refusal(source: Path | str) -> str:
    """What is said of this source, checked to be one line that names it."""
    with pytest.raises(InputError) as caught:
        obtain(str(source))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_bundled_weights_are_those_of_the_hash() -> None:
    weights = obtain("bundled")
    assert (weights.source, weights.sha256) == ("bundled", BUNDLED_SHA256)
    assert weights.tensors is not None
    assert weights.tensors.keys() == {name for name in resnet18().state_dict() if not name.startswith("fc.")}
    assert {value.dtype for value in weights.tensors.values()} == {torch.float32, torch.int64}


def test_none_is_no_weights() -> None:
    assert obtain("none").tensors is None


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_a_file_gives_its_backbone_without_its_head(
    suffix: str, backbone: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / f"mine{suffix}"
    save_file(backbone, path) if suffix == ".safetensors" else torch.save(backbone, path)
    weights = obtain(str(path))
    assert weights.source == str(path)
    assert weights.tensors is not None
    assert sorted(weights.tensors) == sorted(name for name in backbone if not name.startswith("fc."))
    assert all(torch.equal(value, backbone[name]) for name, value in weights.tensors.items())


def test_half_precision_is_read_as_float32(backbone: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(
        {name: v.half() if v.is_floating_point() else v for name, v in backbone.items()}, tmp_path / "h.safetensors"
    )
    tensors = load_weights(str(tmp_path / "h.safetensors")).tensors
    assert tensors is not None
    assert torch.equal(tensors["conv1.weight"], backbone["conv1.weight"].half().float())


def test_another_architecture_is_refused_by_what_is_odd(tmp_path: Path) -> None:
    save_file(resnet34().half().state_dict(), tmp_path / "r34.safetensors")
    message = refusal(tmp_path / "r34.safetensors")
    assert f"{tmp_path / 'r34.safetensors'} is not a torchvision ResNet-18" in message
    assert "layer1.2" in message


def test_a_missing_tensor_is_named(backbone: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file({k: v for k, v in backbone.items() if k != "layer1.0.conv1.weight"}, tmp_path / "a.safetensors")
    assert "lacks layer1.0.conv1.weight" in refusal(tmp_path / "a.safetensors")


def test_a_tensor_of_another_shape_is_named(backbone: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(backbone | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, tmp_path / "a.safetensors")
    assert "conv1.weight is (64, 1, 7, 7), not (64, 3, 7, 7)" in refusal(tmp_path / "a.safetensors")


def test_a_truncated_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(BUNDLED.read_bytes()[:100_000])
    assert "cut.safetensors cannot be read" in refusal(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("data", [b"", b"these are not weights\n" * 100], ids=["empty", "text"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".txt"])
def test_a_file_of_something_else_is_refused(data: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"notes{suffix}"
    path.write_bytes(data)
    assert str(path) in refusal(path)


class Mischief:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def test_a_pth_file_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Mischief(tmp_path / "ran")}, tmp_path / "evil.pth")
    assert "without running code" in refusal(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_the_mischief_would_have_worked(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Mischief(tmp_path / "ran")}, tmp_path / "evil.pth")
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [{"model": {"a": torch.zeros(1)}}, [torch.zeros(1)], torch.zeros(1)])
def test_a_pth_file_that_is_no_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert "not a plain state dict" in refusal(tmp_path / "a.pth")


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "is not a file" in refusal(tmp_path / "nowhere.pth")
    assert "is not a file" in refusal(tmp_path)


def test_a_misspelt_name_is_refused_with_the_names_there_are() -> None:
    assert "did you mean imagenet?" in refusal("imagnet")
    assert "imagenet, bundled or none" in refusal("mine")


# ------------------------------------------------------------------------------------------------- imagenet


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch"


def test_without_a_network_three_ways_out_are_named(empty_cache: Path, network_attempts: list[str]) -> None:
    started = time.perf_counter()
    message = refusal("imagenet")
    assert time.perf_counter() - started < 2.5
    assert set(network_attempts) == {"download.pytorch.org"}
    network_attempts.clear()
    assert "name the weights bundled, which come with headstart, or a file" in message
    assert "put resnet18-f37072fd.pth there" in message
    assert str(empty_cache / "hub/checkpoints") in message
    assert [path for path in empty_cache.rglob("*") if path.is_file()] == []


@pytest.fixture
def silent_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A network that never answers, nor says that it is not there."""
    over = threading.Event()

    def wait(*_: object, **__: object) -> object:
        over.wait(30)
        raise OSError("no answer")

    monkeypatch.setattr(socket, "create_connection", wait)
    yield
    over.set()


@pytest.mark.usefixtures("silent_network")
def test_a_network_that_never_answers_is_given_up_soon(empty_cache: Path) -> None:
    started = time.perf_counter()
    assert "cannot be reached" in refusal("imagenet")
    assert time.perf_counter() - started < 2.5
    assert [path for path in empty_cache.rglob("*") if path.is_file()] == []


def test_a_damaged_file_in_the_cache_is_refused_by_hash(empty_cache: Path) -> None:
    cached = empty_cache / "hub/checkpoints/resnet18-f37072fd.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half a download")
    message = refusal("imagenet")
    assert str(cached) in message
    assert "damaged" in message
