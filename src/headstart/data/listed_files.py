"""The names of files in a list or table, which may have been written on another system."""

import errno
import os
import re
from collections.abc import Container

from headstart.spreadsheet import restored

_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # C:\ or C:/, and \\server


def listed_file(folder: str | os.PathLike[str], name: str) -> str:
    """The file that a list in `folder` means by `name`: relative to the folder, or absolute.

    Backslashes are separators if no file has this name and one has the name with slashes. Raises OSError for a name on
    a drive of Windows that does not exist here."""
    path = os.path.join(folder, name)
    if ("\\" not in name and ":" not in name) or _exists(path):
        return path
    if _exists(other := os.path.join(folder, name.replace("\\", "/"))):
        return other
    if _DRIVE.match(name):
        raise FileNotFoundError(errno.ENOENT, "on a Windows drive; write a path relative to the list")
    return path


def listed_name(name: str, known: Container[str]) -> str:
    """`name`, or if it is not known, a known one with slashes for its backslashes or without the apostrophe of
    --excel."""
    return next((one for one in (name, name.replace("\\", "/"), restored(name)) if one in known), name)


def _exists(path: str) -> bool:
    try:
        return os.path.exists(path)
    except ValueError:  # a NUL
        return False
