"""The model file that a run folder, a path or an address names. Knows no torch, so that a mistake is reported at
once."""

import os
from pathlib import Path

from headstart.errors import InputError
from headstart.files import user_path
from headstart.model.header import check_fields, read_fields
from headstart.wording import one_line


def _downloaded(address: str) -> Path:
    """The model file of hf://OWNER/NAME, from the cache of huggingface_hub or downloaded. Raises InputError."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(address.removeprefix("hf://"), "model.safetensors"))
    except Exception as error:  # huggingface_hub, its HTTP library and the file system raise many things
        raise InputError(f"{address} cannot be loaded: {one_line(error)[:300]}") from None


def find_model(run: str | os.PathLike[str]) -> Path:
    """The model file that a run folder or a path names. Raises InputError."""
    if not isinstance(run, str | os.PathLike):
        raise InputError(f"the run is {run!r}; name a run folder or a model.safetensors")
    if str(run).startswith("hf://"):
        return _downloaded(str(run))
    path = Path(user_path(run))
    if path.is_dir():
        path = path / "model.safetensors"
        if not path.is_file():
            from headstart.config_io import check_single_run  # reads YAML

            check_single_run(path.parent)
            raise InputError(f"{run} has no model.safetensors; name a finished run folder or a model file")
    elif not path.is_file():
        raise InputError(f"{run} does not exist; name a run folder, a model.safetensors or hf://OWNER/NAME")
    elif path.suffix != ".safetensors":
        raise InputError(f"{run} is not a .safetensors file; name a run folder or a model.safetensors")
    return path


def check_model(run: str) -> None:
    """Raise InputError unless `run` names a model file whose header can be read. An address of the Hub is not checked,
    because it would be downloaded."""
    if not run.startswith("hf://"):
        path = find_model(run)
        fields, _ = read_fields(path)
        check_fields(fields, path)
