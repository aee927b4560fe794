"""The precision of a run: what was requested, and what the device can do."""

import os

import torch

from headstart.errors import InputError


def choose_precision(asked: str, device: torch.device) -> tuple[str, str]:
    """("no" | "bf16" | "fp16", why), decided from what the device can do, never from a timing.

    What the launcher was asked for (--mixed_precision, or its configuration file) counts as asked; its "no" is also what it says when
    it was asked for nothing, so that decides nothing.
    Raises InputError for fp16 where Accelerate would silently compute in fp32, and if launcher and configuration contradict.
    """
    kind = device.type
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if launcher not in ("no", asked):
        if asked != "auto":
            raise InputError(
                f"the launcher was asked for {launcher} and runtime.mixed_precision is {asked}; give the same to both, or to one"
            )
        if launcher not in ("bf16", "fp16"):
            raise InputError(
                f"the launcher was asked for {launcher}, which headstart does not do; use bf16, fp16 or no"
            )
        return choose_precision(launcher, device)[0], "as the launcher was asked"
    if asked == "fp16" and kind != "cuda":
        raise InputError(f"runtime.mixed_precision fp16 needs a CUDA GPU and this run is on {kind}; use bf16 or no")
    if asked != "auto":
        return asked, "as asked"
    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU multiplies bf16 natively"
        return "fp16", "the GPU has no native bf16"
    if kind == "cpu":
        if _cpu_has_bf16():
            return "bf16", "the processor multiplies bf16 natively (AVX512-BF16 or AMX)"
        return "no", "the processor has no native bf16"
    return "no", f"mixed precision is not tried on {kind}"


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 natively, and oneDNN may use that (ONEDNN_MAX_CPU_ISA can forbid it)."""
    checks = (
        getattr(torch.cpu, "_is_avx512_bf16_supported", None),
        getattr(torch.cpu, "_is_amx_tile_supported", None),
    )
    return any(check() for check in checks if check is not None) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
