"""The formats of `headstart export`, and whether a model can be written there. Knows no torch: what writes and opens a
format is imported when it is called."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.backbones import BACKBONES
from headstart.errors import InputError
from headstart.files import check_parent
from headstart.wording import install_command, nearest

if TYPE_CHECKING:
    from headstart.exporters.original import Original
    from headstart.exporters.probabilities import Probabilities


@dataclass(frozen=True)
class Format:
    """One kind of exported model.

    suffix: of the file, "" for a folder; write, open: as in `as_torchvision.py`; modules: what has to be importable to
    write and to check it; extra: of headstart, that installs them, "" for none; tolerance: the largest difference of a
    probability, see `gate.check`; largest_loss: of accuracy, for a format that rounds the weights."""

    name: str
    what: str
    suffix: str
    write: "Callable[[Original, Path], None]"
    open: "Callable[[Path], Probabilities]"
    modules: tuple[str, ...] = ()
    extra: str = ""
    tolerance: float = 1e-4
    largest_loss: float | None = None
    backbones: tuple[str, ...] = ()  # whose models it can hold; () for all


FOLDER, ONNX, PIXELS = "", ".onnx", "normalised pixels in, logits out"


def _format(module: str, name: str, what: str, suffix: str, needs: str = "", **others: Any) -> Format:
    """needs: modules; the extra of headstart that installs them has the name of the format, for all of ONNX onnx."""

    def late(function: str) -> Callable[..., Any]:
        return lambda *arguments: getattr(import_module(f"headstart.exporters.{module}"), function)(*arguments)

    modules = tuple(needs.split())
    extra = "onnx" if suffix == ONNX else name if modules else ""
    return Format(name, what, suffix, late("write"), late("open_it"), modules, extra, **others)


_ORT = "onnx onnxscript onnxruntime"
_OF_TORCHVISION = tuple(backbone.name for backbone in BACKBONES.values() if backbone.of_torchvision)
_ALL = (
    _format(
        "as_torchvision", "torchvision", "a plain state dict, safetensors", ".safetensors", backbones=_OF_TORCHVISION
    ),
    _format(
        "as_transformers", "transformers", "a folder for AutoModelForImageClassification", FOLDER, "transformers timm"
    ),
    _format("as_timm", "timm", "a folder for timm.create_model", FOLDER, "timm"),
    _format("as_onnx", "onnx", f"ONNX, {PIXELS}", ONNX, _ORT),
    _format(
        "as_onnx_image", "onnx-uint8", "ONNX, RGB image of any size in, probabilities out", ONNX, _ORT, tolerance=1e-3
    ),
    _format("as_int8", "int8", f"ONNX of 8-bit integers, {PIXELS}", ONNX, _ORT, tolerance=0.1, largest_loss=0.02),
    _format("as_pt2", "pt2", "a torch.export program", ".pt2"),
    _format("as_openvino", "openvino", f"a folder for OpenVINO, {PIXELS}", FOLDER, "onnx onnxscript openvino"),
)
FORMATS = {format.name: format for format in _ALL}


def find_format(name: str) -> Format:
    if name not in FORMATS:
        raise InputError(
            f"unknown format {name}{nearest(name, FORMATS) or '; --format is one of ' + ', '.join(FORMATS)}"
        )
    return FORMATS[name]


def check_place(out: Path, format: Format, *, overwrite: bool) -> None:
    """Raise InputError unless the result may be put there; before the work, not after it."""
    if format.suffix and out.suffix != format.suffix:
        raise InputError(f"--out {out}: {format.name} is a file that ends in {format.suffix}; name one")
    if not format.suffix and out.suffix in {other.suffix for other in FORMATS.values() if other.suffix}:
        raise InputError(f"--out {out}: {format.name} is a folder; name one without {out.suffix}")
    check_parent(out)
    record = parity_file(out, format)
    if format.suffix and not overwrite and record.exists():
        raise InputError(f"--out {out}: {record} exists; name another place, or replace both with --overwrite")
    if record.is_dir():
        raise InputError(
            f"--out {out}: {record} is a folder and was not written by headstart export; name another place"
        )
    if not (out.exists() or out.is_symlink()):
        return
    if not overwrite:
        raise InputError(f"--out {out} exists; name another place, or replace it with --overwrite")
    if out.is_dir() != (not format.suffix) or not record.is_file():
        raise InputError(f"--out {out} was not written by headstart export; it is not replaced, name another place")


def parity_file(out: Path, format: Format) -> Path:
    """What was compared: in a folder, or beside a file."""
    return out.with_name(f"{out.name}.parity.json") if format.suffix else out / "parity.json"


def check_runtime(format: Format) -> None:
    """Raise InputError if the format's own runtime is not installed."""
    missing = [name for name in format.modules if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"export to {format.name} needs {' and '.join(missing)}, to write the model and to check it; "
            f"install it with: {install_command(format.extra)}"
        )
