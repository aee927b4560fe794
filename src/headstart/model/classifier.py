"""torchvision's ResNet-18 with a new head, whose frozen parts stay in eval mode whoever calls train()."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet


class Classifier(ResNet):  # type: ignore[misc, unused-ignore]
    """ResNet-18 (He et al. 2016); state-dict keys are torchvision's.

    forward: float (n, 3, H, W) normalised pixels -> (n, num_classes) logits.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
        self._in_eval: list[nn.Module] = []

    def keep_in_eval(self, names: Iterable[str]) -> None:
        """From now on `train()` leaves these modules in eval mode, so BatchNorm statistics there cannot move."""
        modules = dict(self.named_modules())
        self._in_eval = [modules[name] for name in names]
        self.train(self.training)

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        for module in self._in_eval:
            module.eval()
        return self


def build_model(num_classes: int, *, backbone: dict[str, torch.Tensor] | None, head_init: str, seed: int) -> Classifier:
    """A classifier with the backbone's weights (float32) and a fresh head; random throughout without them.

    Initialisation is a function of the seed; the global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(num_classes)
        if head_init == "zero":
            nn.init.zeros_(model.fc.weight)
            nn.init.zeros_(model.fc.bias)
        else:
            model.fc.reset_parameters()
    if backbone is not None:
        model.load_state_dict({**backbone, **_head_of(model)}, strict=True)
    return model


def _head_of(model: Classifier) -> dict[str, Any]:
    return {f"fc.{name}": value for name, value in model.fc.state_dict().items()}
