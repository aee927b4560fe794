"""No stored randomness: the sample order is a function of (seed, epoch), augmentation of (seed, epoch, sample id)."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from headstart.data.source import WINDOW_BYTES

_ORDER, _AUGMENTATION, _PLACE = 1, 2, 3  # separate streams from one seed


def keys_of(ids: Sequence[str]) -> np.ndarray:
    """One uint64 per sample id, shape (n,); equal ids have equal keys on every machine."""
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids)
    return np.frombuffer(digests, dtype="<u8")


@dataclass(frozen=True)
class Blocks:
    """Samples that are cheap to read together, such as those of a row group. Each epoch visits the blocks in another
    order, in windows of at most `size` samples and WINDOW_BYTES (at least one block); the samples of a window are
    shuffled.

    members: (n,) int64, the block of each sample; keys: (b,) uint64; counts, num_bytes: (b,) int64, samples and bytes
    of memory per block."""

    members: np.ndarray
    keys: np.ndarray
    counts: np.ndarray
    num_bytes: np.ndarray
    size: int

    @staticmethod
    def of(names: Sequence[str], sizes: Sequence[int], *, size: int) -> "Blocks | None":
        """names: the block of each sample; sizes: its bytes while the block is in memory. None if there are no
        blocks, or if one window holds all samples."""
        if len(names) <= size and sum(sizes) <= WINDOW_BYTES:
            return None
        unique, members, counts = np.unique(np.array(names), return_inverse=True, return_counts=True)
        num_bytes = np.bincount(members, weights=np.array(sizes), minlength=len(unique)).astype(np.int64)
        return Blocks(members, keys_of(unique.tolist()), counts, num_bytes, size)

    def windows(self, *, seed: int, epoch: int) -> np.ndarray:
        """(n,) int64: the window of each sample."""
        number = np.empty(len(self.keys), dtype=np.int64)
        window = samples = held = 0
        for block in epoch_order(self.keys, seed=seed, epoch=epoch).tolist():
            count, num_bytes = int(self.counts[block]), int(self.num_bytes[block])
            if samples and (samples + count > self.size or held + num_bytes > WINDOW_BYTES):
                window, samples, held = window + 1, 0, 0
            number[block] = window
            samples, held = samples + count, held + num_bytes
        return np.asarray(number[self.members])

    def layout(self, ids: Sequence[str]) -> str:
        """A hash of everything that the order of samples with these ids depends on, besides the seed."""
        members = zip(ids, self.members.tolist(), strict=True)
        lines = sorted(f"{sample} {self.keys[b]} {self.counts[b]} {self.num_bytes[b]}" for sample, b in members)
        text = "\n".join([str(self.size), str(WINDOW_BYTES), *lines])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def epoch_order(keys: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(n), int64: samples sorted by a hash of (seed, epoch, id).

    Two samples keep their relative order when files are added or removed.
    """
    return np.argsort(_mix(keys ^ _stream(seed, _ORDER, epoch)), kind="stable")


def epoch_draws(
    keys: np.ndarray, *, seed: int, epoch: int, labels: np.ndarray | None = None, blocks: Blocks | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The n samples of an epoch in order, and how often each was drawn before in the run; both (n,) int64.

    Without labels every sample once, within windows of `blocks` if there are any. With labels, (n,) int, each class
    gets n / C draws, plus or minus one: a class is an endless stream of passes over its samples, and an epoch takes
    the next piece of each stream. So a sample is drawn again only after all others of its class, within an epoch or
    across epochs.
    """
    if labels is None:
        order = epoch_order(keys, seed=seed, epoch=epoch)
        if blocks is not None:
            order = order[np.argsort(blocks.windows(seed=seed, epoch=epoch)[order], kind="stable")]
        return order, np.full(len(keys), epoch, dtype=np.int64)
    classes = np.unique(labels)
    chosen, passes = [], []
    for place, label in enumerate(classes):
        members = np.flatnonzero(labels == label)
        # the draws of all classes add up to n in every epoch (Hermite's identity), and none lags by a whole draw
        start, stop = ((e * len(keys) + place) // len(classes) for e in (epoch, epoch + 1))
        for number in range(start // len(members), -(-stop // len(members))):
            first = number * len(members)
            order = members[epoch_order(keys[members], seed=seed, epoch=number)]
            piece = order[max(start - first, 0) : stop - first]
            chosen.append(piece)
            passes.append(np.full(len(piece), number, dtype=np.int64))
    index, drawn = np.concatenate(chosen), np.concatenate(passes)
    # two draws of one sample are far apart: the place depends on how often it was drawn
    mixed = _mix(_mix(keys[index] ^ drawn.astype(np.uint64)) ^ _stream(seed, _PLACE, epoch))
    order = np.argsort(mixed, kind="stable")
    return index[order], drawn[order]


def augmentation_seeds(keys: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """The random seed of each sample's augmentation in this epoch, uint64 below 2^63, shape of `keys`.

    epoch: how often the sample was drawn before, so that every draw is augmented differently."""
    return _mix(keys ^ _stream(seed, _AUGMENTATION, epoch)) >> np.uint64(1)


def epoch_ends(*, num_samples: int, batch_size: int, epochs: int) -> list[int]:
    """The number of optimizer steps after epoch 1, 2, ...

    Every batch is full: if the batch size does not divide the number of samples, the last batch of an epoch is
    completed from the next epoch. Raises ValueError if a batch would hold more than one epoch.
    """
    if batch_size > num_samples:
        raise ValueError(f"batch size {batch_size} exceeds {num_samples} samples")
    return [-(-epoch * num_samples // batch_size) for epoch in range(1, epochs + 1)]


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Yields, for each backward pass, a global batch of (sample index, how often the sample was drawn before).

    labels: (n,) int, the classes to balance; None for every sample once per epoch, and the second number is the epoch.
    blocks: no effect on balanced classes. The batches are consecutive pieces of one endless stream of epochs, so the
    batch of a step is a function of (seed, step) alone: `start_step=k` yields the batches that remain after k steps.
    """

    def __init__(
        self,
        keys: np.ndarray,
        *,
        batch_size: int,
        num_steps: int,
        seed: int,
        start_step: int = 0,
        accumulation: int = 1,
        labels: np.ndarray | None = None,
        blocks: Blocks | None = None,
    ) -> None:
        assert batch_size % accumulation == 0
        self.keys = keys
        self.seed = seed
        self.labels, self.blocks = labels, blocks
        self.batch_size = batch_size // accumulation  # the attribute that Accelerate splits over processes
        self.drop_last = True  # every batch is full, so nothing is ever dropped
        self._start = start_step * accumulation
        self._stop = num_steps * accumulation

    def __len__(self) -> int:
        return self._stop - self._start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        num_samples = len(self.keys)
        order_of, order, drawn = -1, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        for batch in range(self._start, self._stop):
            members = []
            for draw in range(batch * self.batch_size, (batch + 1) * self.batch_size):
                epoch, offset = divmod(draw, num_samples)
                if epoch != order_of:
                    order_of = epoch
                    order, drawn = epoch_draws(
                        self.keys, seed=self.seed, epoch=epoch, labels=self.labels, blocks=self.blocks
                    )
                members.append((int(order[offset]), int(drawn[offset])))
            yield members


class EvalSampler(Sampler[list[tuple[int, int]]]):
    """Every sample once, in order; the last batch may be short."""

    def __init__(self, num_samples: int, *, batch_size: int) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.drop_last = False

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in range(0, self.num_samples, self.batch_size):
            stop = min(start + self.batch_size, self.num_samples)
            yield [(index, 0) for index in range(start, stop)]


def _stream(seed: int, purpose: int, epoch: int) -> np.uint64:
    digest = hashlib.blake2b(f"{seed}/{purpose}/{epoch}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection of uint64 that looks random."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))
