"""Failures of the system are one sentence; everything else is a bug with its traceback."""

import errno

import pytest
import torch.distributed

from headstart.errors import known_failure

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
    assert "b: Permission denied" in (known_failure(locked) or "")


def test_predict_names_its_own_option_to_continue() -> None:
    message = known_failure(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), command="predict")
    assert "--num_workers" in (message or "")
    assert "--out FOLDER/" in (message or "")
