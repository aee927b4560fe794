"""The candidates of `headstart choose`: backbones with their weights and image sizes."""

from collections.abc import Sequence
from dataclasses import dataclass

from headstart.backbones import Backbone
from headstart.errors import InputError
from headstart.model.backbones import find_backbone
from headstart.model.weight_sources import BUNDLED_BACKBONE, HUB, IMAGENET, Download, Packaged


@dataclass(frozen=True)
class Wanted:
    """A candidate. weights: as `model.weights`; image_size: pixels."""

    backbone: Backbone
    weights: str
    image_size: int

    @property
    def name(self) -> str:
        return f"{self.backbone.name} at {self.image_size} px"


def candidates(backbones: Sequence[str], sizes: Sequence[int], weights: str | None) -> list[Wanted]:
    """Every backbone at every size, or at its own size if it computes no other. By default those whose weights are on
    this machine, each at its own size, with their own weights.

    Raises InputError for an unknown backbone, a size that it cannot compute, and a candidate that is named twice."""
    found: list[Wanted] = []
    for name in backbones or [name for name, source in IMAGENET.items() if _is_at_hand(name, source)]:
        backbone = find_backbone(name)
        for size in [backbone.image_size] if backbone.fixed_size else sizes or [backbone.image_size]:
            backbone.sizes(size, None)
            one = Wanted(backbone, weights or _weights_of(name), size)
            if one in found:
                raise InputError(f"{one.name} is named twice; list each backbone and each size once")
            found.append(one)
    return found


def _is_at_hand(name: str, source: Download | Packaged) -> bool:
    """Nothing is downloaded, and the weights of the largest networks need not be installed."""
    if isinstance(source, Packaged):
        return source.installed
    return name == BUNDLED_BACKBONE


def _weights_of(name: str) -> str:
    """The best ones of a backbone that are on this machine, or else those that are downloaded."""
    if name not in IMAGENET:
        return HUB
    source = IMAGENET[name]
    if name == BUNDLED_BACKBONE and isinstance(source, Download) and not source.path.is_file():
        return "bundled"
    return "imagenet"
