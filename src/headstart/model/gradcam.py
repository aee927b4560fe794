"""Where a ResNet-18 looked: Grad-CAM of its last stage, in closed form. Knows torch alone.

Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) weighs each map of a layer with the mean gradient of a class's logit in it, adds them up
and keeps what is positive. Behind the last stage of a ResNet come only the mean of each map and a linear head, so that gradient is
the head's weight divided by the number of places, everywhere (CAM, Zhou et al. 2016, is this special case): the forward pass is enough.
"""

import torch


def heat(maps: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """maps: (n, 512, h, w), the last stage's output; weights: (n, 512), the head's row of the class that is asked about
    -> float32 (n, h, w) in [0, 1], 1 where most speaks for the class; all 0 where nothing does."""
    found = torch.einsum("nkhw,nk->nhw", maps.float(), weights.float()).relu_()
    return found / found.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
