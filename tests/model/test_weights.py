"""Backbone weights by name or path: what loads, what is refused, and nothing that runs code."""

import hashlib
import os
import re
import socket
import subprocess
import sys
import threading
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.models import tensors_of, write_model
from torchvision.models import resnet18, resnet34

import headstart
from headstart.backbones import BACKBONES, RESNET18
from headstart.errors import InputError
from headstart.model import weight_sources
from headstart.model.backbones import find_backbone
from headstart.model.model_file import load_tensors, save_model_tensors
from headstart.model.weight_sources import BUNDLED, BUNDLED_SHA256, IMAGENET, Download, choose_weights
from headstart.model.weights import Weights, ensure_available, load_weights


@pytest.fixture(scope="module")
def backbone() -> dict[str, torch.Tensor]:
    """A ResNet-18 of random numbers under torchvision's keys, its head included."""
    torch.manual_seed(0)
    return resnet18(num_classes=7).state_dict()


def obtain(source: str) -> Weights:
    ensure_available(source, RESNET18)
    return load_weights(source, RESNET18)


def backbone_of(path: Path) -> dict[str, torch.Tensor]:
    """What is loaded from the file."""
    tensors = obtain(str(path)).tensors
    assert tensors is not None
    return tensors


def without_counters(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}


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


# ---- what public files have and ours never do


@pytest.mark.parametrize("kind", ["zip", "before torch 1.6", "safetensors"])
def test_missing_batch_counters_are_zero_as_in_strict_loading(kind: str, backbone: dict, tmp_path: Path) -> None:
    path = tmp_path / ("old.safetensors" if kind == "safetensors" else "old.pth")
    old = without_counters(backbone)
    assert len(old) == 102
    if kind == "safetensors":
        save_file(old, path)
    else:  # torchvision's first files hold parameters, not plain tensors
        content = {name: torch.nn.Parameter(v) if "running" not in name else v for name, v in old.items()}
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    expected = resnet18(num_classes=7)
    expected.load_state_dict(old, strict=True)
    found = backbone_of(path)
    assert len(found) == 120
    for name, value in found.items():
        assert torch.equal(value, expected.state_dict()[name]), name
        assert value.dtype == expected.state_dict()[name].dtype
        assert not value.requires_grad


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "backbone.", "model.encoder."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_prefix_of_a_wrapper_is_removed(prefix: str, suffix: str, backbone: dict, tmp_path: Path) -> None:
    path = tmp_path / f"wrapped{suffix}"
    content = {prefix + name: value for name, value in backbone.items()}
    save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
    found = backbone_of(path)
    assert sorted(found) == sorted(name for name in backbone if not name.startswith("fc."))
    assert torch.equal(found["layer4.1.conv2.weight"], backbone["layer4.1.conv2.weight"])


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "ema"])
def test_the_state_dict_of_a_training_checkpoint_is_found_one_level_down(key, backbone, tmp_path) -> None:
    """With what the scripts of torchvision, timm and the ImageNet example put beside it."""
    momentum = {"conv1.weight": torch.zeros(64, 3, 7, 7)}
    beside = {"epoch": 3, "optimizer": momentum, "args": Namespace(lr=0.1), "best_acc1": np.float64(71.2)}
    torch.save(beside | {key: backbone}, tmp_path / "best.pth.tar")
    assert torch.equal(backbone_of(tmp_path / "best.pth.tar")["conv1.weight"], backbone["conv1.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read_as_float32(dtype: torch.dtype, backbone: dict, tmp_path: Path) -> None:
    content = {name: v.to(dtype) for name, v in backbone.items()}  # the counters too, as model.half() leaves some
    save_file(content, tmp_path / "h.safetensors")
    found = backbone_of(tmp_path / "h.safetensors")
    assert torch.equal(found["conv1.weight"], backbone["conv1.weight"].to(dtype).float())
    assert {value.dtype for value in found.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(
    ("extra", "reported"),
    [
        ({"fc.0.weight": torch.zeros(9, 512), "fc.1.bias": torch.zeros(3)}, None),
        ({"head.weight": torch.zeros(9, 512)}, "head.weight"),
        ({"conv1.total_ops": torch.zeros(1), "total_params": torch.zeros(1)}, "conv1.total_ops"),
        ({"normalize.mean": torch.zeros(3)}, "normalize.mean"),
    ],
)
def test_another_head_and_foreign_buffers_are_left_out(extra, reported, backbone, tmp_path, caplog) -> None:
    content = {name: value for name, value in backbone.items() if not name.startswith("fc.")} | extra
    save_file(content, tmp_path / "a.safetensors")
    assert len(backbone_of(tmp_path / "a.safetensors")) == 120
    err = caplog.text
    assert (reported in err and "a.safetensors" in err) if reported else not err


def test_counters_of_one_element_and_other_endings_load(backbone, tmp_path) -> None:
    counters = {name: v.reshape(1) for name, v in backbone.items() if name.endswith("num_batches_tracked")}
    torch.save(backbone | counters, tmp_path / "old.TH")
    assert backbone_of(tmp_path / "old.TH")["bn1.num_batches_tracked"].shape == ()


def test_averaged_weights_load_without_their_counter(backbone, tmp_path, caplog) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(resnet18(num_classes=7))
    averaged.module.load_state_dict(backbone)
    torch.save(averaged.state_dict(), tmp_path / "swa.pth")
    assert torch.equal(backbone_of(tmp_path / "swa.pth")["conv1.weight"], backbone["conv1.weight"])
    assert "n_averaged" in caplog.text


def test_a_file_with_two_networks_is_refused_with_their_prefixes(backbone, tmp_path) -> None:
    content = {f"{prefix}{n}": v for prefix in ("encoder_k.", "encoder_q.") for n, v in backbone.items()}
    torch.save(content, tmp_path / "moco.pth")
    message = refusal(tmp_path / "moco.pth")
    assert "encoder_k., encoder_q." in message


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("layer2.0.conv1.weight", float("nan"), "nan"),
        ("layer4.1.bn2.bias", float("inf"), "inf"),
        ("bn1.running_var", -1.0, "-1"),
    ],
)
def test_weights_that_are_no_numbers_are_refused_by_name(name, value, shown, backbone, tmp_path) -> None:
    broken = backbone[name].clone()
    broken.view(-1)[5] = value
    save_file(backbone | {name: broken}, tmp_path / "a.safetensors")
    message = refusal(tmp_path / "a.safetensors")
    assert "a.safetensors" in message
    assert name in message
    assert shown in message


def test_whole_numbers_are_no_weights(backbone, tmp_path) -> None:
    save_file(backbone | {"conv1.weight": torch.zeros(64, 3, 7, 7, dtype=torch.int32)}, tmp_path / "a.safetensors")
    message = refusal(tmp_path / "a.safetensors")
    assert "conv1.weight" in message
    assert "int32" in message


@pytest.mark.parametrize(
    ("name", "broken", "shown"),
    [
        ("layer1.0.conv1.weight", torch.full((64, 64, 3, 3), float("nan")), "nan"),
        ("fc.bias", torch.full((3,), float("inf")), "inf"),
        ("layer3.0.bn1.running_var", torch.full((256,), -2.0), "-2"),
        ("fc.weight", torch.zeros((3, 512), dtype=torch.int32), "int32"),
    ],
)
def test_a_model_file_whose_tensors_are_no_weights_is_refused_by_name(name, broken, shown, tmp_path) -> None:
    folder = write_model(tmp_path / "run")
    _, info = load_tensors(folder / "model.safetensors")
    save_model_tensors(folder / "model.safetensors", {**tensors_of(), name: broken}, info)
    with pytest.raises(InputError) as caught:
        headstart.load(folder)
    assert all(part in str(caught.value) for part in ("model.safetensors", name, shown))


@pytest.mark.parametrize("std", [[0.0, 1.0, 1.0], [float("nan"), 1.0, 1.0], [1.0, 1.0, 10**400]])
def test_a_model_file_that_divides_by_no_number_is_refused(std: list[float], tmp_path: Path) -> None:
    folder = write_model(tmp_path / "run")
    _, info = load_tensors(folder / "model.safetensors")
    info = replace(info, preprocess=replace(info.preprocess, std=tuple(std)))
    save_model_tensors(folder / "model.safetensors", tensors_of(), info)
    with pytest.raises(InputError, match="preprocess"):
        headstart.load(folder)


# ---- what is refused


def test_another_architecture_is_refused_by_what_is_odd(tmp_path: Path) -> None:
    save_file(resnet34().half().state_dict(), tmp_path / "r34.safetensors")
    message = refusal(tmp_path / "r34.safetensors")
    assert str(tmp_path / "r34.safetensors") in message
    assert "ResNet-18" in message
    assert "layer1.2" in message


def test_a_missing_tensor_is_named(backbone: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file({k: v for k, v in backbone.items() if k != "layer1.0.conv1.weight"}, tmp_path / "a.safetensors")
    assert "layer1.0.conv1.weight" in refusal(tmp_path / "a.safetensors")


def test_a_tensor_of_another_shape_is_named(backbone: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(backbone | {"bn1.weight": torch.zeros(32)}, tmp_path / "a.safetensors")
    message = refusal(tmp_path / "a.safetensors")
    assert "bn1.weight" in message
    assert "(32,)" in message
    assert "(64,)" in message


def test_a_truncated_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(BUNDLED.read_bytes()[:100_000])
    assert "cut.safetensors" in refusal(tmp_path / "cut.safetensors")


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
    assert "evil.pth" in refusal(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_the_mischief_would_have_worked(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Mischief(tmp_path / "ran")}, tmp_path / "evil.pth")
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [{"model": {"a": 1}}, [torch.zeros(1)], torch.zeros(1), {}])
def test_a_pth_file_that_is_no_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    message = refusal(tmp_path / "a.pth")
    assert "a.pth" in message
    assert "state_dict" in message


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "nowhere.pth" in refusal(tmp_path / "nowhere.pth")
    assert str(tmp_path) in refusal(tmp_path)


def test_a_misspelt_name_is_refused_with_the_names_there_are() -> None:
    assert "imagenet" in refusal("imagnet")
    message = refusal("mine")
    assert all(name in message for name in ("imagenet", "bundled", "none"))


# ------------------------------------------------------------------------------------------------- imagenet


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Also without pauses between the attempts of a download."""
    monkeypatch.setattr(weight_sources, "PAUSES_S", (0.0, 0.0))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch"


def test_without_a_network_three_ways_out_are_named(empty_cache: Path, network_attempts: list[str]) -> None:
    message = refusal("imagenet")
    assert set(network_attempts) == {"download.pytorch.org"}
    network_attempts.clear()
    assert "--model.weights bundled" in message
    assert "resnet18-f37072fd.pth" in message
    assert str(empty_cache / "hub/checkpoints") in message
    assert [path for path in empty_cache.rglob("*") if path.is_file()] == []


@pytest.fixture
def silent_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A network that never answers, nor says that it is not there."""
    over = threading.Event()

    def wait(*_: object, **__: object) -> object:
        assert over.wait(60), "the program waits for a network that does not answer"
        raise OSError("no answer")

    monkeypatch.setattr(socket, "create_connection", wait)
    yield
    over.set()


@pytest.mark.usefixtures("silent_network")
def test_a_network_that_never_answers_is_given_up_soon(empty_cache: Path) -> None:
    assert "download.pytorch.org" in refusal("imagenet")
    assert [path for path in empty_cache.rglob("*") if path.is_file()] == []


def test_a_damaged_file_in_the_cache_is_refused_by_hash(empty_cache: Path) -> None:
    cached = empty_cache / "hub/checkpoints/resnet18-f37072fd.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half a download")
    message = refusal("imagenet")
    assert str(cached) in message
    assert "f37072fd" in message


# ---- a download, from a server of this machine


@pytest.fixture
def mirror(backbone: dict, tmp_path: Path) -> Iterator[tuple[Download, list[str]]]:
    """A server of an old torchvision file, and the requests that it got. The first download of busy-*.pth fails."""
    stored = tmp_path / "served.pth"
    torch.save(without_counters(backbone), stored, _use_new_zipfile_serialization=False)
    content = stored.read_bytes()
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.command)
            if "busy" in self.path and asked.count("GET") == 1:
                self.send_error(503)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/resnet18-test.pth"
    yield Download(url, hashlib.sha256(content).hexdigest()[:8]), asked
    server.shutdown()
    server.server_close()


def test_a_download_is_checked_kept_and_not_repeated(mirror, backbone, empty_cache: Path) -> None:
    download, asked = mirror
    for _ in range(2):
        ensure_available("imagenet", RESNET18, imagenet=download)  # the second time it is there
    assert asked == ["HEAD", "GET"]
    found = load_weights("imagenet", RESNET18, imagenet=download).tensors
    assert found is not None
    assert torch.equal(found["conv1.weight"], backbone["conv1.weight"])
    assert int(found["bn1.num_batches_tracked"]) == 0
    assert [path.name for path in empty_cache.rglob("*") if path.is_file()] == ["resnet18-test.pth"]


def test_a_download_that_breaks_off_is_refused_and_not_kept(empty_cache: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"100\r\nhalf of a chunk")
            self.close_connection = True

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/broken.pth"
        with pytest.raises(InputError, match=re.escape(url)):
            ensure_available("imagenet", RESNET18, imagenet=Download(url, "00000000"))
        server.shutdown()
    assert [path for path in empty_cache.rglob("*") if path.is_file()] == []


def test_a_download_of_another_hash_is_refused_and_not_kept(mirror, empty_cache: Path) -> None:
    download, _ = mirror
    with pytest.raises(InputError, match=re.escape(download.url)):
        ensure_available("imagenet", RESNET18, imagenet=replace(download, sha256_prefix="00000000"))
    assert [path for path in empty_cache.rglob("*") if path.is_file()] == []


# ---- auto


def test_auto_takes_a_cached_file_without_asking(mirror, empty_cache: Path) -> None:
    download, asked = mirror
    download.path.parent.mkdir(parents=True)
    download.path.write_bytes(b"any")
    assert choose_weights(RESNET18, imagenet=download) == "imagenet"
    assert asked == []


def test_auto_downloads_once_and_tries_again_when_the_server_is_busy(mirror, empty_cache: Path) -> None:
    download, asked = mirror
    busy = replace(download, url=download.url.replace("resnet18-test", "busy-test"))
    for _ in range(2):
        assert choose_weights(RESNET18, imagenet=busy) == "imagenet"
    assert asked == ["HEAD", "GET", "GET"]
    assert busy.path.is_file()


@pytest.mark.usefixtures("empty_cache")
def test_auto_without_a_network_uses_the_bundled_weights_and_warns_once(network_attempts: list[str], caplog) -> None:
    assert choose_weights(RESNET18) == "bundled"
    assert set(network_attempts) == {"download.pytorch.org"}
    network_attempts.clear()
    assert len(caplog.records) == 1
    for fragment in ("download.pytorch.org", "bundled", "88.2%", "--model.backbone lite0", "94.8%"):
        assert fragment in caplog.text


@pytest.mark.usefixtures("empty_cache")
def test_auto_of_another_backbone_without_a_network_names_the_choices(network_attempts: list[str]) -> None:
    with pytest.raises(InputError, match=r"resnet34-b627a593\.pth"):
        choose_weights(BACKBONES["resnet34"])
    network_attempts.clear()


def test_auto_of_a_packaged_backbone_needs_no_network() -> None:
    assert choose_weights(BACKBONES["lite0"]) == "imagenet"
    missing = replace(IMAGENET["lite2"], package="efficientnet_lite9_pytorch_model")
    with pytest.raises(InputError, match=r"efficientnet-lite9.*headstart\[lite\]"):
        choose_weights(BACKBONES["lite2"], imagenet=missing)


def test_auto_never_downloads_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"timm:test_vit.*--model\.weights hub"):
        choose_weights(find_backbone("timm:test_vit"))


HOST = """
import os, shutil, sys
from headstart.backbones import RESNET18
from headstart.config import RuntimeConfig
from headstart.errors import InputError
from headstart.runtime.accelerator import start_accelerator
from headstart.model.weight_sources import Download
from headstart.model.weights import obtain_weights

accelerator, download = start_accelerator(RuntimeConfig(cpu=True, mixed_precision="no")), Download(*sys.argv[1:])
print(len(obtain_weights(accelerator, "imagenet", RESNET18, imagenet=download).tensors))
if os.environ["RANK"] == "1":  # from now on the second host cannot store the file
    shutil.rmtree(download.path.parent)
    download.path.parent.write_text("in the way")
try:
    obtain_weights(accelerator, "imagenet", RESNET18, imagenet=download)
except InputError as error:
    print(error)
mine = "mine-of-two.safetensors"  # the same name in the folder of each host
for content in ("damaged", "different"):
    if content == "different":
        shutil.copy(os.environ["BUNDLED"] if os.environ["RANK"] == "0" else os.environ["OTHER"], mine)
    elif os.environ["RANK"] == "0":
        shutil.copy(os.environ["BUNDLED"], mine)
    else:
        open(mine, "w").write("damaged")
    try:
        obtain_weights(accelerator, mine, RESNET18)
    except InputError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_each_host_gets_the_file_and_a_host_that_cannot_stops_all(mirror, backbone: dict, tmp_path: Path) -> None:
    download, asked = mirror
    save_file(backbone, tmp_path / "other.safetensors")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):  # each is the first process of its host, with a cache folder of its own
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
            "TORCH_HOME": str(tmp_path / f"host{rank}"),
            "BUNDLED": str(BUNDLED),
            "OTHER": str(tmp_path / "other.safetensors"),
        }
        command = [sys.executable, "-c", HOST, download.url, download.sha256_prefix]
        (tmp_path / f"folder{rank}").mkdir()
        processes.append(
            subprocess.Popen(
                command, env=environment, cwd=tmp_path / f"folder{rank}", stdout=subprocess.PIPE, text=True
            )
        )
    for process in processes:
        first, blocked, damaged, different = process.communicate(timeout=120)[0].splitlines()
        assert process.returncode == 0
        assert first == "120"
        assert str(tmp_path / "host1") in blocked
        assert "mine-of-two.safetensors" in damaged
        assert socket.gethostname() in damaged
        assert "mine-of-two.safetensors" in different
        assert BUNDLED_SHA256[:8] in different
    assert sorted(asked[:4]) == ["GET", "GET", "HEAD", "HEAD"]
