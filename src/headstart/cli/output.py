"""What the command line does with the messages of the library, and output that outlives its reader."""

import contextlib
import errno
import io
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import Any, TextIO

from headstart.messages import LOG


def clickable(path: Path) -> str:
    """The absolute path. On a terminal that supports links (OSC 8), a link to the file."""
    text = str(path.absolute())
    if not (sys.stdout.isatty() and _supports_links(os.environ)):
        return text
    return f"\033]8;;{path.absolute().as_uri()}\033\\{text}\033]8;;\033\\"


def _supports_links(environment: Mapping[str, str]) -> bool:
    """By the variables that terminals set. tmux and screen hide the terminal, and do not pass links on everywhere."""
    if "TMUX" in environment or environment.get("TERM", "").startswith(("screen", "tmux", "dumb")):
        return False
    vte = environment.get("VTE_VERSION", "")  # GNOME and others
    return (
        (vte.isdigit() and int(vte) >= 5000)
        or environment.get("TERM_PROGRAM") in ("iTerm.app", "WezTerm", "vscode", "ghostty", "Hyper", "rio", "Tabby")
        or environment.get("TERM") in ("xterm-kitty", "xterm-ghostty", "alacritty", "foot", "foot-extra")
        or bool(environment.keys() & {"WT_SESSION", "KONSOLE_VERSION", "DOMTERM"})
    )


class _Printer(logging.Handler):
    """Prints messages to standard output, warnings to standard error, as they are at that moment. A Path among the
    arguments of a message is printed as a link."""

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.args, tuple):
            record = copy(record)
            record.args = tuple(clickable(one) if isinstance(one, Path) else one for one in record.args or ())
        if record.levelno >= logging.WARNING:
            print(f"headstart: warning: {record.getMessage()}", file=sys.stderr, flush=True)
        else:
            print(record.getMessage(), flush=True)


@contextlib.contextmanager
def printed_messages() -> Iterator[None]:
    printer, level, propagate = _Printer(), LOG.level, LOG.propagate
    LOG.addHandler(printer)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    try:
        yield
    finally:
        LOG.removeHandler(printer)
        LOG.setLevel(level)
        LOG.propagate = propagate


_READER_GONE = (errno.EPIPE, errno.EIO)  # a pipe that nobody reads; a terminal that was closed


@contextlib.contextmanager
def outliving_the_reader() -> Iterator[None]:
    """Inside, what is written to standard output and error after their reader has gone is dropped, instead of raising
    BrokenPipeError or OSError: a closed terminal or `| head` must not end a training run."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_outliving(stream) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # without a console on Windows, or closed by the caller
                stream.flush()
        sys.stdout, sys.stderr = before


def _outliving(stream: TextIO) -> TextIO:
    if os.name == "nt" and stream is not None and stream.isatty():  # the console of Windows is no file of bytes
        return stream
    try:
        stream.flush()
        file = _Outliving(stream.fileno(), "wb", closefd=False)
    except (OSError, AttributeError, ValueError):  # not a file of the system (None, a notebook, a test), or closed
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(file), encoding=stream.encoding, errors=stream.errors, line_buffering=True, write_through=True
    )


class _Outliving(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if error.errno not in _READER_GONE:  # a full disk: one error, and no more of them when the process ends
                raise
            return len(memoryview(data).cast("B"))
