"""Failures of the system are one sentence; everything else is a bug with its traceback."""

import errno
import os
from pathlib import Path

import pytest
import torch.distributed

from headstart.cli.main import main
from headstart.errors import exit_code, known_failure

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:4515."

LOST = [
    RuntimeError(GLOO),
    torch.distributed.DistBackendError("NCCL communicator was aborted"),
    torch.distributed.DistStoreError("wait timeout after 300000ms"),
    torch.distributed.DistNetworkError("The client socket has timed out"),
]
BUGS = [
    RuntimeError("the request timed out"),
    RuntimeError("Socket has no attribute gloo"),
    ValueError(GLOO),
    TimeoutError("timed out"),
    AttributeError("module has no attribute 'ProcessGroup'"),
]


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_a_lost_process_is_one_sentence_in_a_run_of_several(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    message = known_failure(error) or ""
    for fragment in ("process 1", str(error), "headstart resume"):
        assert fragment in message
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert known_failure(error) is None


@pytest.mark.parametrize("error", BUGS, ids=repr)
def test_other_exceptions_with_similar_words_are_bugs(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert known_failure(error) is None


def test_a_full_disk_and_a_folder_without_permission_name_the_file() -> None:
    full, locked = OSError(errno.ENOSPC, "No space", "a.bin"), PermissionError(errno.EACCES, "Permission denied", "b")
    assert "a.bin" in (known_failure(full) or "")
    assert "b: no permission; make it readable" in (known_failure(locked) or "")


@pytest.mark.parametrize(("number", "code"), [(errno.ESTALE, 1), (errno.EIO, 1), (errno.EROFS, 1), (errno.ELOOP, 2)])
def test_a_path_that_the_system_refuses_is_one_sentence(number: int, code: int) -> None:
    error = OSError(number, os.strerror(number), "disk/x.csv")
    assert f"disk/x.csv: {os.strerror(number)}; " in (known_failure(error) or "")
    assert exit_code(error) == code
    assert known_failure(OSError(number, os.strerror(number))) is None


def test_names_that_are_too_long_or_that_link_to_themselves_are_wrong_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop, long = tmp_path / "loop", "n" * 300
    loop.symlink_to(loop)
    for arguments in (
        ["predict", long, "a.jpg"],
        ["train", str(tmp_path), "--config", long],
        ["train", str(tmp_path), "--out", long],
        ["predict", str(loop), str(loop)],
        ["compare", str(loop), str(tmp_path)],
    ):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        printed = capsys.readouterr().err
        assert end.value.code == 2, printed
        assert "Traceback" not in printed


class OutOfMemoryError(RuntimeError):
    """As torch's, which needs a GPU."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: you tried"),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
    ids=repr,
)
def test_lack_of_memory_names_the_batch_size(error: Exception) -> None:
    assert "--train.batch_size" in (known_failure(error) or "")
    assert " --batch_size" in (known_failure(error, command="predict") or "")


def test_libraries_that_do_not_fit_name_the_limit() -> None:
    error = ImportError("libtorch_cpu.so: failed to map segment from shared object")
    assert "ulimit -v" in (known_failure(error) or "")
    assert known_failure(ImportError("No module named 'torchx'")) is None


def test_too_many_open_files_name_the_limit() -> None:
    assert "ulimit -n" in (known_failure(OSError(errno.EMFILE, "Too many open files")) or "")


def test_predict_names_its_own_option_to_continue() -> None:
    message = known_failure(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), command="predict")
    assert "--num_workers" in (message or "")
    assert "--out FOLDER/" in (message or "")
