"""`headstart export`: write, check, and only then give the result its name."""

import importlib.util
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from headstart.errors import InputError
from headstart.exporters import (
    as_int8,
    as_onnx,
    as_onnx_image,
    as_openvino,
    as_pt2,
    as_timm,
    as_torchvision,
    as_transformers,
)
from headstart.exporters.format import Format
from headstart.exporters.gate import check
from headstart.exporters.original import Original, read_original
from headstart.exporters.run_images import RunImages
from headstart.files import check_parent, fsync, sha256_of, write_json
from headstart.model.model_file import find_model
from headstart.model.resnet import KINDS
from headstart.results import Export, ExportRefused, Parity
from headstart.wording import nearest

FOLDER, ONNX, PIXELS = "", ".onnx", "normalised pixels in, logits out"


def _format(module: Any, name: str, what: str, suffix: str, needs: str = "", **others: Any) -> Format:
    """needs: modules; the extra of headstart that installs them has the name of the format, for all of ONNX onnx."""
    modules = tuple(needs.split())
    extra = "onnx" if suffix == ONNX else name if modules else ""
    return Format(name, what, suffix, module.write, module.open_it, modules, extra, **others)


_ORT = "onnx onnxscript onnxruntime"
_ALL = (
    _format(as_torchvision, "torchvision", "a plain state dict, safetensors", ".safetensors", backbones=tuple(KINDS)),
    _format(
        as_transformers, "transformers", "a folder for AutoModelForImageClassification", FOLDER, "transformers timm"
    ),
    _format(as_timm, "timm", "a folder for timm.create_model", FOLDER, "timm"),
    _format(as_onnx, "onnx", f"ONNX, {PIXELS}", ONNX, _ORT),
    _format(
        as_onnx_image, "onnx-uint8", "ONNX, RGB image of any size in, probabilities out", ONNX, _ORT, tolerance=1e-3
    ),
    _format(as_int8, "int8", f"ONNX of 8-bit integers, {PIXELS}", ONNX, _ORT, tolerance=0.1, largest_loss=0.02),
    _format(as_pt2, "pt2", "a torch.export program", ".pt2"),
    _format(as_openvino, "openvino", f"a folder for OpenVINO, {PIXELS}", FOLDER, "onnx onnxscript openvino"),
)
FORMATS = {format.name: format for format in _ALL}


def export_run(
    run: str,
    *,
    format: str,
    out: str,
    data: str | None = None,
    overwrite: bool = False,
    allow_loss: float | None = None,
    images: int = 1000,
) -> Export:
    """Check the arguments, then export. Raises InputError, and ExportRefused: then nothing is written."""
    chosen = find_format(format)
    if allow_loss is not None:
        if chosen.largest_loss is None:
            raise InputError(f"--allow_loss is for int8; {format} must give the probabilities of predict")
        chosen = replace(chosen, largest_loss=allow_loss)
    check_place(Path(out), chosen, overwrite=overwrite)
    check_runtime(chosen)
    original = read_original(find_model(run), RunImages.of(Path(run), data=data))
    if chosen.backbones and original.backbone.name not in chosen.backbones:
        raise InputError(
            f"{run} is of {original.backbone.title}, which {format} does not have; --format timm, transformers or onnx "
            "can hold it"
        )
    try:
        return export(original, chosen, Path(out), overwrite=overwrite, at_most=images)
    except ExportRefused as refusal:
        refusal.args = (f"{format} is not written: {refusal}",)
        raise


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
            f"pip install 'headstart[{format.extra}]'"
        )


def export(original: Original, format: Format, out: Path, *, overwrite: bool = False, at_most: int = 1000) -> Export:
    """Write below a temporary name, compare with the original, rename. Raises ExportRefused and InputError."""
    with _staging(out) as folder:
        made = folder / out.name
        format.write(original, made)
        parity = check(
            original,
            format.open(made),
            tolerance=format.tolerance,
            largest_loss=format.largest_loss,
            at_most=at_most,
        )
        record, record_file = _record(original, format, parity), parity_file(made, format)
        write_json(record_file, record)
        for path in (*sorted(made.rglob("*")), made):
            fsync(path)
        if not format.suffix and overwrite and out.exists():
            os.replace(out, folder / "replaced")  # a folder cannot be replaced in one step
        if format.suffix:
            os.replace(record_file, parity_file(out, format))
        os.replace(made, out)
        fsync(out.absolute().parent)
    return Export(path=out, format=format.name, description=format.what, parity=parity, record=record)


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    folder = out.with_name(f".{out.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        folder.mkdir()
        yield folder
    except OSError as error:
        if error.filename is None or not str(error.filename).startswith(str(folder)):
            raise
        raise InputError(f"--out {out}: {error.strerror}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _record(original: Original, format: Format, parity: Parity) -> dict[str, object]:
    return {
        "format": format.name,
        "model_sha256": sha256_of(original.path),
        **original.description(),
        "measured_in": original.info.mixed_precision,
        "compared_in": "fp32",
        "versions": {name: _version(name) for name in ("torch", "pillow", *format.modules)},
        "parity": asdict(parity),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
