"""`headstart export`: write, check, and only then give the result its name."""

import hashlib
import importlib.util
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
from headstart.exporters.gate import Parity, Refused, check
from headstart.exporters.original import Original, read_original
from headstart.exporters.run_images import RunImages
from headstart.files import fsync
from headstart.model.model_file import find_model
from headstart.runtime.accelerator import set_threads
from headstart.wording import nearest

FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT
    for module in (as_torchvision, as_transformers, as_timm, as_onnx, as_onnx_image, as_int8, as_pt2, as_openvino)
}


def export_command(
    run: str,
    *,
    format: str,
    out: str,
    data: str | None = None,
    overwrite: bool = False,
    largest_loss: float | None = None,
    at_most: int = 1000,
) -> Parity:
    """Export, print what was compared. Raises InputError, and Refused where the gate closes; then nothing is left behind."""
    chosen = find_format(format)
    if largest_loss is not None:
        if chosen.largest_loss is None:
            raise InputError(f"--allow_loss is for int8; {format} has to answer as predict does")
        chosen = replace(chosen, largest_loss=largest_loss)
    check_place(Path(out), chosen, overwrite=overwrite)
    check_runtime(chosen)
    set_threads(None)
    model = find_model(run)
    original = read_original(model, RunImages.of(Path(run), data=data))
    parity = export(original, chosen, Path(out), overwrite=overwrite, at_most=at_most)
    print("\n".join(_told(original, chosen, Path(out), parity)))
    return parity


def find_format(name: str) -> Format:
    """Raises InputError with the nearest name."""
    if name not in FORMATS:
        raise InputError(
            f"unknown format {name}{nearest(name, FORMATS) or '; --format is one of ' + ', '.join(FORMATS)}"
        )
    return FORMATS[name]


def check_place(out: Path, format: Format, *, overwrite: bool) -> None:
    """Raise InputError unless the result may be put there; before the work, not after it."""
    parent = out.absolute().parent
    if format.suffix and out.suffix != format.suffix:
        raise InputError(f"--out {out}: {format.name} is a file that ends in {format.suffix}; name one")
    if not format.suffix and out.suffix in {other.suffix for other in FORMATS.values() if other.suffix}:
        raise InputError(f"--out {out}: {format.name} is a folder; name one without {out.suffix}")
    if not parent.is_dir():
        raise InputError(f"--out {out}: {parent} is not a folder; make it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: no permission to write in {parent}; name another place")
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
    if out.is_dir() != (not format.suffix) or not parity_file(out, format).is_file():
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


def export(original: Original, format: Format, out: Path, *, overwrite: bool = False, at_most: int = 1000) -> Parity:
    """Write below a temporary name, pass the gate, rename. Raises Refused and InputError."""
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
        record = parity_file(made, format)
        record.write_text(json.dumps(_record(original, format, parity), indent=2, ensure_ascii=False) + "\n", "utf-8")
        for path in (*sorted(made.rglob("*")), made, record):
            fsync(path)
        if not format.suffix and overwrite and out.exists():
            os.replace(out, folder / "replaced")  # a folder cannot be replaced in one step
        if format.suffix:
            os.replace(record, parity_file(out, format))
        os.replace(made, out)
        fsync(out.absolute().parent)
    return parity


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, gone afterwards."""
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
        "model_sha256": hashlib.sha256(original.path.read_bytes()).hexdigest(),
        **original.says(),
        "measured_in": original.info.mixed_precision,
        "compared_in": "fp32",
        "versions": {name: _version(name) for name in ("torch", "pillow", *format.modules)},
        "parity": parity.to_json(),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def _told(original: Original, format: Format, out: Path, parity: Parity) -> list[str]:
    """Lines for the terminal."""
    drawn, seen = parity.drawn, parity.validation
    lines = [
        f"{out}: {format.what}",
        f"{drawn.n} drawn images of odd sizes and modes: probabilities differ by {drawn.largest:.1e} at most ({drawn.at}), "
        f"{drawn.mean:.1e} on average; allowed {parity.tolerance:g}{' on average' if format.largest_loss is not None else ''}",
        "for scale, what a fault in the preprocessing would have made of them: "
        + ", ".join(f"{name} {difference:.1e}" for name, difference in parity.visible.items()),
    ]
    if parity.blind_to:
        lines.append(f"note: this model is not sensitive enough to show {', '.join(parity.blind_to)}")
    if seen is None:
        lines.append(f"validation images not compared: {parity.not_validated}")
    else:
        lines.append(
            f"{seen.n} validation images: {parity.correct} right, {parity.correct_before} before; the same class for "
            f"{seen.same_class}; probabilities differ by {seen.largest:.1e} at most, {seen.mean:.1e} on average"
        )
    if original.info.mixed_precision != "no":
        lines.append(
            f"compared in fp32; the run measured itself in {original.info.mixed_precision}, which differs by its rounding"
        )
    if original.temperature != 1.0:
        lines.append(
            f"probabilities are calibrated: logits are divided by {original.temperature:.4g} in the exported head"
        )
    return lines


__all__ = ["FORMATS", "Refused", "export", "export_command", "find_format"]
