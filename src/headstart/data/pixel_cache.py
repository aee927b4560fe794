"""Decoded images in memory that processes share: whoever decodes one first keeps it for all."""

import errno
import mmap
import multiprocessing
import os
import tempfile
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import torch

from headstart.config import DataConfig
from headstart.files import cache_folder
from headstart.runtime.hardware import free_disk, free_memory, local_processes

MOST_IMAGES = 2**20
LOCK_S = 1.0  # a process that was killed with the lock in its hand must not stop the others
_ABSENT, _BEGUN, _READY = 0, 1, 2


@dataclass(frozen=True)
class CacheLimit:
    """Bytes that may be kept; on_disk: in a file without a name, mapped into memory and gone with the run."""

    num_bytes: int = 0
    on_disk: bool = False


NO_CACHE = CacheLimit()


class Pixels:
    """uint8 (3, H, W) tensors by name. Forked processes share them; a pickled copy begins with nothing, in as much room."""

    def __init__(self, cache_limit: CacheLimit) -> None:
        self._room = cache_limit
        self._slots: dict[str, int] = {}
        if cache_limit.num_bytes:
            most = min(
                MOST_IMAGES, cache_limit.num_bytes // 16384 + 4096
            )  # what knows an image must not outweigh small images
            self._lock: Any = multiprocessing.Lock()
            self._file, mapped = _map(cache_limit)
            if self._file is not None:
                weakref.finalize(self, self._file.close)
            self._bytes = np.frombuffer(mapped, dtype=np.uint8)
            facts = np.frombuffer(mmap.mmap(-1, 32 * (most + 1)), dtype=np.int64).reshape(most + 1, 4)
            self._end, self._facts = (
                facts[0],
                facts[1:],
            )  # bytes given away; of each image: state, offset, height, width

    def expect(self, names: Iterable[str]) -> None:
        """Make it possible to keep these later, in whatever process. To be called before others are forked."""
        if not self._room.num_bytes or not self._lock.acquire(timeout=LOCK_S):
            return
        try:  # threads add names at once, and no two may have one place
            for name in names:
                if name not in self._slots and len(self._slots) < len(self._facts):
                    self._slots[name] = len(self._slots)
        finally:
            self._lock.release()

    def get(self, name: str) -> torch.Tensor | None:
        slot = self._slots.get(name)
        if slot is None or self._facts[slot, 0] != _READY:
            return None
        return self._view(slot)

    def put(self, name: str, pixels: torch.Tensor) -> None:
        """Keep an image if there is room. Threads and processes may do so at once."""
        if name not in self._slots:
            self.expect([name])
        slot = self._slots.get(name)
        if slot is None or not self._reserve(slot, pixels):
            return
        self._view(slot).copy_(pixels)
        self._facts[slot, 0] = _READY

    def _reserve(self, slot: int, pixels: torch.Tensor) -> bool:
        if not self._lock.acquire(timeout=LOCK_S):
            return False
        try:
            offset = int(self._end[0])
            if self._facts[slot, 0] != _ABSENT or offset + pixels.nbytes > self._room.num_bytes:
                return False
            if self._file is not None and not _allocate(self._file.fileno(), offset, pixels.nbytes):
                self._end[0] = self._room.num_bytes  # others have filled the disk: nothing more is kept
                return False
            self._facts[slot] = _BEGUN, offset, *pixels.shape[1:]
            self._end[0] = offset + -(-pixels.nbytes // 64) * 64
            return True
        finally:
            self._lock.release()

    def _view(self, slot: int) -> torch.Tensor:
        _, offset, height, width = (int(fact) for fact in self._facts[slot])
        flat = self._bytes[offset : offset + 3 * height * width]
        return torch.from_numpy(flat.reshape(height, width, 3)).permute(2, 0, 1)

    def __reduce__(self) -> tuple[Any, ...]:
        return Pixels, (self._room,)


def _map(cache_limit: CacheLimit) -> tuple[IO[bytes] | None, mmap.mmap]:
    """The file, which has no name and is sparse, and its bytes."""
    if not cache_limit.on_disk:
        return None, mmap.mmap(-1, cache_limit.num_bytes)
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (open as long as the pixels are)
    file.truncate(cache_limit.num_bytes)
    return file, mmap.mmap(file.fileno(), cache_limit.num_bytes)


def _allocate(file: int, offset: int, length: int) -> bool:
    """Whether the disk has room for these bytes of a sparse file. Writing to a page of a mapped file that has none kills the process (SIGBUS)."""
    if not hasattr(os, "posix_fallocate"):  # macOS, Windows
        return True
    try:
        os.posix_fallocate(file, offset, length)
    except OSError as error:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT)
    return True


def cache_limit_for(data: DataConfig) -> CacheLimit:
    """What this process and its workers may keep of images for training views, and as much again for evaluation views:
    together a quarter of the free memory, or of the free disk. Workers that are not forked each have room of their own."""
    if data.cache == "off":
        return CacheLimit()
    processes = local_processes()
    if multiprocessing.get_all_start_methods()[0] != "fork":
        processes *= max(1, data.num_workers or 0)
    on_disk = data.cache == "disk"
    return CacheLimit((free_disk(cache_folder()) if on_disk else free_memory()) // 8 // processes, on_disk)
