"""`headstart export`: write, check, and only then give the result its name."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from headstart.errors import InputError
from headstart.exporters.formats import Format, check_place, check_runtime, find_format, parity_file
from headstart.exporters.gate import check
from headstart.exporters.original import Original, read_original
from headstart.exporters.run_images import RunImages
from headstart.files import check_local, fsync, sha256_of, write_json
from headstart.model.find_model import find_model
from headstart.results import Export, ExportRefused, Parity
from headstart.runs.files import check_outside_data
from headstart.runtime.progress import ItemProgress


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
    check_local(out)
    check_place(Path(out), chosen, overwrite=overwrite)
    check_outside_data(out, Path(run), data=data)
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


def export(original: Original, format: Format, out: Path, *, overwrite: bool = False, at_most: int = 1000) -> Export:
    """Write below a temporary name, compare with the original, rename. Raises ExportRefused and InputError."""
    with _staging(out) as folder:
        made = folder / out.name
        with ItemProgress(f"write {format.name}"):
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
