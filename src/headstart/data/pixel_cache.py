"""Decoded images in memory that processes share: the first process that decodes an image keeps it for all."""

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
LOCK_S = 1.0  # a process that was killed while it held the lock must not stop the others
_ABSENT, _BEGUN, _READY = 0, 1, 2


@dataclass(frozen=True)
class CacheLimit:
    """Bytes that may be kept; on_disk: in an unnamed file, mapped into memory, that disappears with the run."""

    num_bytes: int = 0
    on_disk: bool = False


NO_CACHE = CacheLimit()


class SharedPixels:
    """uint8 (3, H, W) tensors by name. Forked processes share them; a pickled copy starts empty, with the same
    limit."""

    def __init__(self, limit: CacheLimit) -> None:
        self._limit = limit
        self._slots: dict[str, int] = {}
        if limit.num_bytes:
            # the index of small images must not take more memory than they do
            most = min(MOST_IMAGES, limit.num_bytes // 16384 + 4096)
            self._lock: Any = multiprocessing.Lock()
            self._file: IO[bytes] | None = None
            if limit.on_disk:
                folder = cache_folder()
                folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (open as long as the pixels are)
                self._file.truncate(limit.num_bytes)
                weakref.finalize(self, self._file.close)
            mapped = mmap.mmap(-1 if self._file is None else self._file.fileno(), limit.num_bytes)
            self._bytes = np.frombuffer(mapped, dtype=np.uint8)
            index = np.frombuffer(mmap.mmap(-1, 32 * (most + 1)), dtype=np.int64).reshape(most + 1, 4)
            self._end, self._index = index[0], index[1:]  # bytes in use; per image: state, offset, height, width

    def expect(self, names: Iterable[str]) -> None:
        """Reserve places in the index for these images, so that any process can keep them. Call it before a fork."""
        if not self._limit.num_bytes or not self._lock.acquire(timeout=LOCK_S):
            return
        try:  # threads add names at the same time, and two names must not get one place
            for name in names:
                if name not in self._slots and len(self._slots) < len(self._index):
                    self._slots[name] = len(self._slots)
        finally:
            self._lock.release()

    def get(self, name: str) -> torch.Tensor | None:
        slot = self._slots.get(name)
        return None if slot is None or self._index[slot, 0] != _READY else self._pixels(slot)

    def put(self, name: str, pixels: torch.Tensor) -> None:
        """Keep an image unless the limit is reached. Safe in threads and processes at the same time."""
        if name not in self._slots:
            self.expect([name])
        slot = self._slots.get(name)
        if slot is not None and self._reserve(slot, pixels):
            self._pixels(slot).copy_(pixels)
            self._index[slot, 0] = _READY

    def _reserve(self, slot: int, pixels: torch.Tensor) -> bool:
        if not self._lock.acquire(timeout=LOCK_S):
            return False
        try:
            offset = int(self._end[0])
            if self._index[slot, 0] != _ABSENT or offset + pixels.nbytes > self._limit.num_bytes:
                return False
            if self._file is not None and not _allocate(self._file.fileno(), offset, pixels.nbytes):
                self._end[0] = self._limit.num_bytes  # others have filled the disk: nothing more is kept
                return False
            self._index[slot] = _BEGUN, offset, *pixels.shape[1:]
            self._end[0] = offset + -(-pixels.nbytes // 64) * 64
            return True
        finally:
            self._lock.release()

    def _pixels(self, slot: int) -> torch.Tensor:
        _, offset, height, width = (int(value) for value in self._index[slot])
        flat = self._bytes[offset : offset + 3 * height * width]
        return torch.from_numpy(flat.reshape(height, width, 3)).permute(2, 0, 1)

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedPixels, (self._limit,)


def _allocate(file: int, offset: int, length: int) -> bool:
    """Whether the disk has space for these bytes of a sparse file. Writing to a mapped page without space kills the
    process (SIGBUS)."""
    if not hasattr(os, "posix_fallocate"):  # macOS, Windows
        return True
    try:
        os.posix_fallocate(file, offset, length)
    except OSError as error:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT)
    return True


def cache_limit_for(data: DataConfig) -> CacheLimit:
    """The limit for the images of the training transform, and again for those of the evaluation transform: together a
    quarter of the free memory, or of the free disk. Workers that are not forked have a cache each."""
    if data.cache == "off":
        return NO_CACHE
    processes = local_processes()
    if multiprocessing.get_all_start_methods()[0] != "fork":
        processes *= max(1, data.num_workers or 0)
    on_disk = data.cache == "disk"
    return CacheLimit((free_disk(cache_folder()) if on_disk else free_memory()) // 8 // processes, on_disk)
