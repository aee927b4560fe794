"""The precision of a run: chosen from the configuration, the launcher and the device."""

import os

import torch

from headstart.errors import InputError


def choose_precision(requested: str, device: torch.device) -> tuple[str, str]:
    """("no" | "bf16" | "fp16", reason). requested: a value of runtime.mixed_precision.

    "auto" depends only on what the device supports, never on a timing. The precision of the launcher (its option
    --mixed_precision or its configuration file) counts as requested, except "no", which launchers also pass by default.
    Raises InputError if launcher and configuration differ, and for fp16 where Accelerate would silently use fp32.
    """
    kind, reason = device.type, "requested"
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if launcher not in ("no", requested):
        if requested != "auto":
            raise InputError(
                f"the launcher requested {launcher} but runtime.mixed_precision is {requested}; set the same value in "
                "both, or in only one"
            )
        if launcher not in ("bf16", "fp16"):
            raise InputError(f"the launcher requested {launcher}, which is not supported; use bf16, fp16 or no")
        requested, reason = launcher, "requested by the launcher"
    if requested == "fp16" and kind != "cuda":
        raise InputError(f"runtime.mixed_precision fp16 needs a CUDA GPU but the run is on {kind}; use bf16 or no")
    if requested != "auto":
        return requested, reason
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "native bf16") if native else ("fp16", "no native bf16")
    if kind == "cpu":
        return ("bf16", "native bf16") if _cpu_has_bf16() else ("no", "no native bf16")
    return "no", f"mixed precision is not used on {kind}"


def describe_precision(precision: str, reason: str) -> str:
    """The result of choose_precision as text: 'bf16 (requested)', 'fp32 (no native bf16)'."""
    return f"{'fp32' if precision == 'no' else precision} ({reason})"


def _cpu_has_bf16() -> bool:
    """Whether the processor has AVX512-BF16 or AMX and oneDNN may use it (ONEDNN_MAX_CPU_ISA can forbid it)."""
    checks = (
        getattr(torch.cpu, "_is_avx512_bf16_supported", None),
        getattr(torch.cpu, "_is_amx_tile_supported", None),
    )
    return any(check() for check in checks if check is not None) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
