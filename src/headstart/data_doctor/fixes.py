"""`fixes.csv`: the suggestions of the data check, edited by a person; and the new folder of links that results."""

import csv
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from headstart.data.folder_walk import walk
from headstart.data.listed_files import listed_name
from headstart.data.text_tables import TextTable
from headstart.data_doctor.findings import DROP, KEEP, MAYBE, MOVE, Finding
from headstart.errors import InputError
from headstart.files import check_outside, fsync, write_atomically
from headstart.spreadsheet import defused

COLUMNS = ("path", "finding", "suggestion")


def write_fixes(path: Path, findings: Sequence[Finding], *, excel: bool = False) -> None:
    write_csv(path, COLUMNS, fix_lines(findings), excel=excel)


def fix_lines(findings: Sequence[Finding]) -> list[tuple[str, str, str]]:
    """A line per file and finding, in the order given, without names that cannot be written to a text file
    (bad_name)."""
    named = [finding for finding in findings if finding.kind != "bad_name"]
    return [(name, f.kind, what) for f in named for name, what in zip(f.paths, f.suggestions, strict=True)]


def write_csv(path: Path, columns: Sequence[str], lines: Iterable[Sequence[object]], *, excel: bool = False) -> None:
    def write(staging: Path) -> None:
        with staging.open("w", newline="", encoding="utf-8-sig" if excel else "utf-8") as out:
            rows = [[defused(str(value)) for value in line] for line in lines] if excel else lines
            csv.writer(out).writerows([columns, *rows])

    write_atomically(path, write)


def apply_fixes(fixes: Path, *, data: Path, out: Path) -> dict[str, int]:
    """Write the folder `out`: `data` after the fixes, as links to its files (copies where links are not possible).

    A file is left out if any of its lines has "drop", is in another folder if one has "move FOLDER", and stays in place
    otherwise ("keep"; "move? FOLDER": undecided). Hidden files are left out. `data` never changes. Returns the number
    of files linked, copied, dropped, moved, moved into new folders, and undecided. Raises InputError if a line names
    a file that `data` does not have, or two files would get one path; then the new folder does not appear.
    """
    if not data.exists():
        raise InputError(f"--data {data} does not exist; name the folder that was checked")
    if not data.is_dir():
        raise InputError(
            f"--data {data} is not a folder, so a folder of links cannot be made from it; apply {fixes} to the table "
            "by hand, or write the images to class folders first"
        )
    if out.exists() or out.is_symlink():
        raise InputError(f"--out {out} exists; name a new folder")
    check_outside(out, str(data))
    files: dict[str, Path] = {}
    for found in walk(data):
        if found.kind == "unreadable":
            raise InputError(f"{data / found.path}: {found.reason}; repair or remove it, as its files would be lost")
        if found.kind in ("image", "other file"):
            files[found.path] = data / found.path
    folders = {parent.as_posix() for name in files for parent in PurePosixPath(name).parents}
    targets, dropped, undecided = _plan(fixes, data, files, folders)
    moved = [target for name, target in targets.items() if name != target]
    new = sum(PurePosixPath(target).parent.as_posix() not in folders for target in moved)
    count = {"linked": 0, "copied": 0, "dropped": len(dropped), "moved": len(moved)}
    count |= {"into new folders": new, "undecided (move?)": len(undecided)}
    staging = out.with_name(f".{out.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        staging.mkdir(parents=True)
        for name, target in sorted(targets.items()):
            place = staging / target
            place.parent.mkdir(parents=True, exist_ok=True)
            count[_link(files[name], place)] += 1
        os.replace(staging, out)
        fsync(out.absolute().parent)
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}; name another place") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return count


def _plan(
    fixes: Path, data: Path, files: dict[str, Path], folders: set[str]
) -> tuple[dict[str, str], set[str], set[str]]:
    """Name -> new name of every file that is kept, the dropped names, and the undecided ones."""
    dropped: set[str] = set()
    undecided: set[str] = set()
    moved: dict[str, str] = {}
    for number, name, suggestion in _lines(fixes):
        where = f"{fixes}, line {number}: "
        name = listed_name(name, files)
        verb, _, folder = suggestion.strip().partition(" ")
        if verb == MAYBE:
            undecided.add(name)
            continue
        if verb == KEEP and not folder:
            continue  # may name a hidden file or a folder
        if verb not in (DROP, MOVE) or (verb == DROP and folder) or (verb == MOVE and not folder.strip()):
            raise InputError(f"{where}the suggestion is {suggestion!r}; it must be keep, drop or move FOLDER")
        if name not in files:
            what = "a folder; only files can be dropped or moved" if name in folders else "not a visible file"
            raise InputError(f"{where}{name!r} is {what} of {data}")
        if verb == DROP:
            dropped.add(name)
            continue
        target = PurePosixPath(folder.strip()) / PurePosixPath(name).name
        if target.is_absolute() or ".." in target.parts or "\\" in folder:
            raise InputError(f"{where}{folder.strip()!r} must be a folder inside the data, such as train/bees")
        if moved.setdefault(name, target.as_posix()) != target.as_posix():
            raise InputError(f"{where}another line moves {name!r} to {moved[name]!r}")
    targets = {name: moved.get(name, name) for name in files if name not in dropped}
    taken: dict[str, str] = {}
    for name, place in sorted(targets.items()):
        if taken.setdefault(place, name) != name:
            raise InputError(f"{fixes}: {taken[place]!r} and {name!r} would both be {place!r}; rename or drop one")
    for place in targets.values():
        for parent in PurePosixPath(place).parents:
            if parent.as_posix() in taken:
                raise InputError(f"{fixes}: {parent.as_posix()!r} would be a file and a folder")
    return targets, dropped, undecided - dropped - moved.keys()


def _lines(fixes: Path) -> list[tuple[int, str, str]]:
    """Line number, path, suggestion."""
    if not fixes.exists():
        raise InputError(f"{fixes} does not exist; headstart data check DIR --out FOLDER writes a fixes.csv")
    needed = ("path", "suggestion")
    table = TextTable.open(fixes, fits=set(needed).issubset)
    lacking = [name for name in needed if name not in table.columns]
    if lacking:
        raise InputError(f"{fixes} has no column {lacking[0]!r}; expected {','.join(COLUMNS)} in its first line")
    return [(row.line, row.values["path"], row.values["suggestion"]) for row in table.rows(needed)]


def _link(source: Path, place: Path) -> str:
    """ "linked" or "copied"."""
    try:
        place.symlink_to(source.resolve())
        return "linked"
    except (OSError, NotImplementedError):  # FAT, or Windows without the permission
        shutil.copyfile(source, place)
        return "copied"
