"""Networks of timm, with its keys. Importing timm takes seconds, so only they do it."""

from collections.abc import Callable
from functools import cache
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from headstart.backbones import TIMM, Backbone
from headstart.errors import InputError
from headstart.launcher import is_first_process
from headstart.messages import warn
from headstart.model.network import Network
from headstart.wording import nearest


class TimmNetwork(Network):
    """The class that a model of timm gets in addition to its own, whose forward stays."""

    forward_features: Callable[[torch.Tensor], torch.Tensor]
    forward_head: Callable[..., torch.Tensor]
    output_fmt: str = "NCHW"

    def __reduce__(self) -> tuple[Any, ...]:
        """pickle does not find a class that is made here by its name."""
        return _empty, type(self).__bases__, self.__dict__

    def maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, S, S) -> (n, d, h, w), the output of the last stage, or (n, tokens, d)."""
        maps = self.forward_features(pixels)
        return maps.permute(0, 3, 1, 2) if self.output_fmt == "NHWC" else maps

    def pool_maps(self, maps: torch.Tensor) -> torch.Tensor:
        """The maps -> (n, d), the features, which are the inputs of the head."""
        x = maps.permute(0, 2, 3, 1) if self.output_fmt == "NHWC" else maps
        return self.forward_head(x, pre_logits=True)


class TimmTransformer(TimmNetwork):
    """A vision transformer. Its maps are the tokens before the last block: after it, the class token alone may decide,
    and no other token has a gradient."""

    patch_embed: nn.Module
    _pos_embed: Callable[[torch.Tensor], torch.Tensor]
    patch_drop: nn.Module
    norm_pre: nn.Module
    blocks: nn.Sequential
    norm: nn.Module

    def maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, S, S) -> (n, prefix_tokens + h w, d), the tokens that enter the last block."""
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(pixels))))
        for block in self.blocks[:-1]:
            x = block(x)
        return x  # type: ignore[no-any-return]

    def pool_maps(self, maps: torch.Tensor) -> torch.Tensor:
        """The tokens -> (n, d), the features, which are the inputs of the head."""
        return super().pool_maps(self.norm(self.blocks[-1](maps)))


_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@cache
def _class_of(kind: type[TimmNetwork], original: type[nn.Module]) -> type[TimmNetwork]:
    return type(kind.__name__, (kind, original), {})


def _empty(kind: type[TimmNetwork], original: type[nn.Module]) -> TimmNetwork:
    network: TimmNetwork = object.__new__(_class_of(kind, original))  # type: ignore[arg-type]
    return network


_DROP_RATES = ("drop_rate", "drop_prob")
"""Attributes of networks that call the function, and of timm's DropPath and DropBlock."""


def timm_network(backbone: Backbone, num_classes: int) -> TimmNetwork:
    """The model with random weights, without dropout and drop path."""
    model: Any = timm.create_model(backbone.timm, pretrained=False, num_classes=num_classes)
    for module in model.modules():
        if isinstance(module, _DROPOUTS):
            module.p = 0.0
        for name in _DROP_RATES:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    kind = TimmTransformer if isinstance(model, VisionTransformer) else TimmNetwork
    model.__class__ = _class_of(kind, type(model))  # type: ignore[arg-type]
    model.head_name, model.mean_pooled = backbone.head, backbone.plain
    model.prefix_tokens = model.num_prefix_tokens if kind is TimmTransformer else None
    network: TimmNetwork = model
    return network


def pretrained_tensors(backbone: Backbone, file: str | None) -> dict[str, torch.Tensor]:
    """The tensors of timm's pretrained model with its head, from this file of the Hub or downloaded. Raises what timm
    raises."""
    place = None if file is None else {"file": file}
    model = timm.create_model(backbone.timm, pretrained=True, pretrained_cfg_overlay=place)
    state: dict[str, torch.Tensor] = model.state_dict()
    return state


@cache
def describe(name: str) -> Backbone:
    """timm:NAME. Raises InputError if timm has no such model, or its head is not one linear layer on the features."""
    timm_name = name.removeprefix(TIMM)
    if not timm.is_model(timm_name):
        known = [TIMM + model for model in timm.list_models()] if timm_name else []
        hint = nearest(name, known) or "; timm.list_models() lists them"
        raise InputError(f"timm {timm.__version__} has no model {timm_name!r}{hint}")
    try:
        with torch.random.fork_rng(devices=[]):
            model: Any = timm.create_model(timm_name, pretrained=False, num_classes=2)
        head = model.get_classifier()
        names = [key for key, module in model.named_modules() if module is head]
        size = model.pretrained_cfg["input_size"][-1]
        with torch.inference_mode():
            model.eval()
            features = model.forward_head(model.forward_features(torch.zeros(1, 3, size, size)), pre_logits=True)
        fits = isinstance(head, nn.Linear) and features.shape == (1, head.in_features)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        fits = False
    if not fits:
        raise InputError(f"{name} cannot be used, because its head is not one linear layer on its features")
    config = model.pretrained_cfg
    if config.get("crop_mode", "center") != "center" and is_first_process():
        warn(
            f"{name}: trained on images with crop_mode {config['crop_mode']}, which headstart does not have; it crops "
            "the centre"
        )
    return Backbone(
        name=name,
        title=timm_name,
        timm=timm_name,
        head=names[0],
        features=head.in_features,
        image_size=size,
        crop_share=config["crop_pct"],
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        fixed_size=bool(config.get("fixed_input_size")),
        license=config.get("license"),
        base_model=config.get("hf_hub_id") or None,
    )
