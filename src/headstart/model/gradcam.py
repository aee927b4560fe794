"""Where the network looked: Grad-CAM of its last stage, in closed form. Knows torch alone.

Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) weighs each map of a layer with the mean gradient of a class's logit
in it, adds them up and keeps what is positive. After the last stage come only the mean of each map and a linear head,
so that gradient is the head's weight divided by the number of cells, everywhere: the forward pass is enough. (CAM, Zhou
et al. 2016, is this special case.)
"""

import torch


def heat(maps: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """maps: (n, 512, h, w), the output of the last stage; weights: (n, 512), the head's row of one class for each image
    -> float32 (n, h, w) in [0, 1], 1 at the strongest evidence for the class; all 0 where there is none."""
    found = torch.einsum("nkhw,nk->nhw", maps.float(), weights.float()).relu_()
    return found / found.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
