"""Learning rate schedules: pure functions of the number of optimizer steps already done."""

import math


def lr_factor(
    step: int,
    *,
    kind: str,
    total_steps: int,
    warmup_steps: int = 0,
    step_size: float = math.inf,
    gamma: float = 0.1,
) -> float:
    """The factor of the peak learning rate for the update after `step` updates, in [0, 1].

    Warm-up rises linearly and ends at 1. Then constant: 1; cosine: half a cosine that is 0 at total_steps (Loshchilov
    and Hutter 2017, without restarts); step: gamma ** floor(step / step_size), as torch's StepLR stepped once per epoch
    with step_size in steps. Raises ValueError for an unknown kind, or if warm-up takes all steps.
    """
    if warmup_steps >= total_steps and warmup_steps > 0:
        raise ValueError(f"{warmup_steps} warm-up steps of {total_steps} leave none to train at full rate")
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    match kind:
        case "constant":
            return 1.0
        case "cosine":
            done = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
            return 0.5 * (1.0 + math.cos(math.pi * done))
        case "step":
            return float(gamma ** math.floor(step / step_size))
        case _:
            raise ValueError(f"unknown schedule {kind}")
