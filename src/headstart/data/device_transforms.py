"""Augmentation on the device: workers decode, a GPU crops, resizes and flips."""

from collections.abc import Sequence
from typing import Any

import torch

from headstart.data.loaders import TransformedImages
from headstart.data.transforms import Transform


class DecodedImages(TransformedImages):
    """Item (index, epoch) -> the decoded image and the seed of its augmentation, for `DeviceTransform` to finish."""

    @property
    def item_bytes(self) -> int:
        return 16 * super().item_bytes  # photographs are larger than the network's input

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        index, epoch = item
        picture = self.transform.prepared(self.value("sha256", index), lambda: self.decoded(index))
        seed = self.seed_of(index, epoch)
        return {"picture": picture, "seed": seed, "label": self.value("label", index), "index": index}


def collate_decoded(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "pictures": [item["picture"] for item in items],
        "seeds": [item["seed"] for item in items],
        "label": torch.tensor([item["label"] for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
    }


class DeviceTransform:
    """From a batch of `collate_decoded` to uint8 (n, 3, S, S) on `device`. Random numbers are drawn as in a worker,
    so the pixels are the same but for the rounding of the device."""

    def __init__(self, transform: Transform, device: torch.device) -> None:
        self.transform, self.device = transform, device

    def __call__(self, batch: dict[str, Any]) -> torch.Tensor:
        assert self.transform.vary is not None
        moved = [picture.to(self.device, non_blocking=True) for picture in batch["pictures"]]
        return torch.stack(
            [self.transform.vary(image, seed) for image, seed in zip(moved, batch["seeds"], strict=True)]
        )
