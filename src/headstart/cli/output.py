"""What the command line does with the messages of the library, and output that outlives its reader."""

import contextlib
import errno
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from headstart.messages import LOG


class _Printer(logging.Handler):
    """Prints messages to standard output, warnings to standard error, as they are at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
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
