"""What every network offers: it trains, predicts and computes features."""

from collections.abc import Iterable
from typing import Self

import torch
from torch import nn


class Network(nn.Module):
    """forward: float (n, 3, S, S) normalised pixels -> (n, C) logits, which is the head on `pool_maps` on `maps`.

    head_name: of the linear layer that is the head, an Identity in a network without one. prefix_tokens: the number of
    tokens before those of the image where `maps` are the tokens of a transformer, else None. mean_pooled: whether the
    features are the means of the maps."""

    head_name = "fc"
    prefix_tokens: int | None = None
    mean_pooled = True
    _in_eval: tuple[nn.Module, ...] = ()

    def maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, S, S) -> (n, d, h, w), the output of the last stage, or (n, tokens, d)."""
        raise NotImplementedError

    def pool_maps(self, maps: torch.Tensor) -> torch.Tensor:
        """The maps -> (n, d), the features, which are the inputs of the head."""
        raise NotImplementedError

    @property
    def head_layer(self) -> nn.Linear:
        return self.get_submodule(self.head_name)  # type: ignore[return-value]

    def without_head(self) -> nn.Linear:
        """Replace the head by an Identity, and return it."""
        head = self.head_layer
        self.set_submodule(self.head_name, nn.Identity())
        return head

    def keep_in_eval(self, names: Iterable[str]) -> None:
        """From now on `train()` leaves these modules in eval mode, so BatchNorm statistics there cannot move."""
        self._in_eval = tuple(self.get_submodule(name) for name in names)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self._in_eval:
            module.eval()
        return self
