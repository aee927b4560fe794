"""Where the network looked: Grad-CAM of its last stage. Knows torch alone.

Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) weighs each map of a layer with the mean gradient of a class's logit
in it, adds them up and keeps what is positive.
"""

from collections.abc import Callable

import torch


def heat(maps: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """In closed form. If only the mean of each map and a linear head come after the last stage, the gradient is the
    head's weight divided by the number of cells, everywhere: the forward pass is enough. (CAM, Zhou et al. 2016, is
    this special case.)

    maps: (n, d, h, w), the output of the last stage; weights: (n, d), the head's row of one class for each image ->
    float32 (n, h, w) in [0, 1], 1 at the strongest evidence for the class; all 0 where there is none."""
    return _scaled(torch.einsum("nkhw,nk->nhw", maps.float(), weights.float()))


def heat_by_gradient(
    maps: torch.Tensor,
    weights: torch.Tensor,
    pool: Callable[[torch.Tensor], torch.Tensor],
    *,
    prefix_tokens: int | None,
) -> torch.Tensor | None:
    """As `heat`, for any differentiable pool from maps to features (n, d). maps may also be the tokens (n, t, d) of a
    transformer, of which those of the image, after `prefix_tokens` others, form a square. None for other maps."""
    if maps.ndim != 4 and prefix_tokens is None:
        return None
    with torch.inference_mode(False), torch.enable_grad():
        leaf = maps.clone().requires_grad_()
        evidence = (pool(leaf).float() * weights.float()).sum()
        (gradient,) = torch.autograd.grad(evidence, leaf)
    maps, gradient = maps.float(), gradient.float()
    if maps.ndim == 4:
        return _scaled(torch.einsum("nkhw,nk->nhw", maps, gradient.mean(dim=(2, 3))))
    maps, gradient = maps[:, prefix_tokens:], gradient[:, prefix_tokens:]
    found = torch.einsum("ntk,nk->nt", maps, gradient.mean(dim=1))
    side = round(found.shape[1] ** 0.5)
    return _scaled(found.view(-1, side, side))


def _scaled(found: torch.Tensor) -> torch.Tensor:
    found = found.relu()
    return found / found.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
