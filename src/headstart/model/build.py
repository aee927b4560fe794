"""Make a network: fresh, or of given tensors."""

import copy
from collections.abc import Mapping
from functools import cache

import torch
from torch import nn

from headstart.backbones import BACKBONES, Backbone
from headstart.errors import InputError
from headstart.model.network import Network
from headstart.model.resnet import KINDS, ResNet
from headstart.wording import one_line


def build_model(
    backbone: Backbone, num_classes: int, *, tensors: Mapping[str, torch.Tensor] | None, head_init: str, seed: int
) -> Network:
    """A network with these backbone tensors (float32) and a fresh head; random throughout without them.

    Initialisation is a function of the seed and that of torchvision or timm; the global random state is left as it
    was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _random(backbone, num_classes)
        head = network.head_layer
        if head_init == "zero":
            for parameter in head.parameters():
                nn.init.zeros_(parameter)
        else:
            head.reset_parameters()
    if tensors is not None:
        fresh = {f"{network.head_name}.{name}": value for name, value in head.state_dict().items()}
        network.load_state_dict({**tensors, **fresh}, strict=True)
    return network


def _random(backbone: Backbone, num_classes: int) -> Network:
    if backbone.name in KINDS:
        network = ResNet(backbone.name, num_classes)
        network.initialise()
        return network
    from headstart.model.timm_network import timm_network

    return timm_network(backbone, num_classes)


def synchronized(network: Network) -> Network:
    """With the BatchNorm statistics of all processes, on GPUs."""
    if isinstance(network, ResNet):
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call, no-any-return]
    from timm.layers import convert_sync_batchnorm  # torch's own would lose the activation of timm's BatchNormAct2d

    return convert_sync_batchnorm(network)  # type: ignore[no-any-return]


def network_of(tensors: Mapping[str, torch.Tensor], backbone: Backbone) -> Network:
    """The network of these tensors, which are not copied, in eval mode. Without a head among them it has none."""
    bias = tensors.get(f"{backbone.head}.bias")
    if backbone.name in KINDS:
        with torch.device("meta"):  # nothing is initialised
            network: Network = ResNet(backbone.name, None if bias is None else len(bias))
    else:  # the buffers of some are not among their tensors
        with torch.random.fork_rng(devices=[]):
            network = _random(backbone, 1 if bias is None else len(bias))
        if bias is None:
            network.without_head()
    network.load_state_dict({name: value.detach() for name, value in tensors.items()}, strict=True, assign=True)
    return network.eval()


@cache
def check_computes(backbone: Backbone, image_size: int) -> None:
    """Raise InputError unless the network can compute images of this size, in pixels."""
    if backbone.name in BACKBONES or image_size == backbone.image_size:
        return
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        network = _random(backbone, 1).eval()
        try:
            network(torch.zeros(1, 3, image_size, image_size))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise InputError(
                f"data.image_size is {image_size}, which {backbone.title} cannot compute ({one_line(error)[:100]}); "
                f"leave the key out for {backbone.image_size} pixels"
            ) from None


def check_trains_on_one_image(network: Network, image_size: int) -> None:
    """Raise InputError if the network cannot train on a single image per forward pass: BatchNorm needs at least two
    values per channel, and at a small image size the last feature maps have one pixel."""
    model = copy.deepcopy(network).to("meta").train()
    try:
        model(torch.zeros(1, 3, image_size, image_size, device="meta"))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            f"BatchNorm cannot train on one image per forward pass at {image_size} px; increase train.batch_size to "
            "at least 2 images per process and accumulation step, use --strategy.batchnorm freeze, or use a larger "
            "--data.image_size"
        ) from None


@cache
def backbone_shapes(backbone: Backbone) -> dict[str, tuple[int, ...]]:
    """Every tensor of the backbone, name -> shape."""
    with torch.random.fork_rng(devices=[]):
        if backbone.name in KINDS:
            with torch.device("meta"):
                network: Network = ResNet(backbone.name, None)
        else:
            network = _random(backbone, 1)
            network.without_head()
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def not_usable(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Why no network can compute with these tensors; None if it can. Names the first that is at fault."""
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            found = value[~value.isfinite()]
            return f"{name} holds {float(found[0])} ({found.numel()} of {value.numel()} numbers are not finite)"
        if name.endswith("running_var") and (value < 0).any():
            return f"{name} holds {float(value.min()):g}, and a variance cannot be negative"
    return None
