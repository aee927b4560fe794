"""The device and the precision of a run, and how they are printed."""

import pytest
import torch
from accelerate.utils import str_to_bool

from headstart.config import RuntimeConfig
from headstart.diagnostics import environment
from headstart.errors import InputError
from headstart.predict.predictor import _device
from headstart.runtime import precision
from headstart.runtime.accelerator import best_device, start_accelerator
from headstart.runtime.precision import choose_precision, describe_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch) -> None:
    """torch reports a GPU."""
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.parametrize("value", ["y", "Yes", "t", "True", "on", "1", "n", "no", "f", "false", "off", "0"])
def test_the_cpu_is_forced_by_the_values_that_accelerate_accepts(value, gpu, monkeypatch) -> None:
    assert best_device() == GPU
    monkeypatch.setenv("ACCELERATE_USE_CPU", value)
    assert best_device() == (CPU if str_to_bool(value) else GPU)


def test_doctor_prediction_and_training_use_the_same_device(gpu, monkeypatch) -> None:
    monkeypatch.setattr(environment, "MEASURE_S", 0.01)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "on")
    assert environment.examine()["device"] == "cpu"
    assert _device(None) == CPU
    assert start_accelerator(RuntimeConfig(mixed_precision="auto")).device == CPU


@pytest.mark.parametrize(
    ("requested", "launcher", "device", "native_bf16", "expected"),
    [
        ("auto", None, CPU, False, "fp32 (no native bf16)"),
        ("auto", "no", CPU, True, "bf16 (native bf16)"),
        ("auto", None, GPU, True, "bf16 (native bf16)"),
        ("auto", None, GPU, False, "fp16 (no native bf16)"),
        ("auto", None, torch.device("mps"), True, "fp32 (mixed precision is not used on mps)"),
        ("auto", "bf16", CPU, False, "bf16 (requested by the launcher)"),
        ("bf16", "bf16", CPU, False, "bf16 (requested)"),
        ("no", None, GPU, True, "fp32 (requested)"),
    ],
)
def test_the_precision_and_its_reason(requested, launcher, device, native_bf16, expected, monkeypatch) -> None:
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: native_bf16)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native_bf16)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launcher is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    assert describe_precision(*choose_precision(requested, device)) == expected


@pytest.mark.parametrize(
    ("requested", "launcher", "fragments"),
    [("no", "bf16", ("bf16", "runtime.mixed_precision is no")), ("auto", "fp8", ("fp8",)), ("auto", "fp16", ("CUDA",))],
)
def test_a_precision_that_cannot_be_used_is_refused(requested, launcher, fragments, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    with pytest.raises(InputError) as refusal:
        choose_precision(requested, CPU)
    assert all(fragment in str(refusal.value) for fragment in fragments)
