"""Read every image of a source once: hash it and decode it in full, unless a cache has done both before."""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from headstart.data.decode import DIM, SIXTEEN_BIT_MAX, UnreadableImage, decode
from headstart.data.scan_cache import ScanCache
from headstart.data.source import Entry, Scan, Skipped, Source
from headstart.messages import LOG
from headstart.wording import plural

if TYPE_CHECKING:
    from headstart.data.transforms import PixelCache

CHUNK = 4096  # images whose results are awaited together
REPORT_S = 10.0  # between two lines on the progress of a long scan


@dataclass(frozen=True, slots=True)
class ReadImage:
    """An image that decodes."""

    entry: Entry
    sha256: str


@contextlib.contextmanager
def cancelled_on_error(pool: ThreadPoolExecutor) -> Iterator[None]:
    """After an error, and Ctrl-C is one, the pool would finish all that waits."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def read_images(
    source: Source,
    scan: Scan,
    *,
    wanted: Callable[[Entry], bool],
    decoder: Callable[[bytes], Image.Image] = decode,
    known: Callable[[str], bool] | None = None,
    cache: "PixelCache | None" = None,
    num_threads: int | None = None,
    rescan: bool = False,
    only_hash: bool = False,
) -> tuple[list[ReadImage], list[Skipped]]:
    """The images that can be used, and the bad ones. Logs its progress.

    decoder: file -> RGB image, raises UnreadableImage; known: whether a content (sha256) is known to decode, and need
    not be decoded again; cache: receives each decoded image; num_threads: None for Python's default; rescan: read what
    has not changed since the last scan as well; only_hash: decode nothing, so that an image may turn out to be bad."""

    def hash_of(entry: Entry) -> str | Skipped:
        try:
            data = source.read(entry.path)
            sha256 = hashlib.sha256(data).hexdigest()
            if not only_hash and (known is None or not known(sha256)):
                image = decoder(data)
                if SIXTEEN_BIT_MAX in image.info:
                    deep[sha256] = image.info[SIXTEEN_BIT_MAX]
                if cache is not None:
                    cache.add(entry.split, sha256, image)
        except UnreadableImage as error:
            return Skipped(entry.path, str(error))
        except OSError as error:
            return Skipped(entry.path, error.strerror or str(error))
        return sha256

    deep: dict[str, int] = {}  # largest values of images of 16 bits
    cached = ScanCache.of(source, scan.entries, use=not rescan)
    found: list[str | None] = [None] * len(scan.entries)
    places = [place for place, entry in enumerate(scan.entries) if wanted(entry)]
    bad = list(scan.bad)
    started = reported = time.monotonic()
    with ThreadPoolExecutor(num_threads) as pool, cancelled_on_error(pool):  # Pillow and hashlib release the GIL
        for start in range(0, len(places), CHUNK):
            chunk = places[start : start + CHUNK]
            fresh = pool.map(hash_of, [scan.entries[p] for p in chunk if cached.sha256[p] is None])
            for place in chunk:
                result = cached.sha256[place] or next(fresh)
                if isinstance(result, Skipped):
                    bad.append(result)
                else:
                    found[place] = result
            now, done = time.monotonic(), min(start + CHUNK, len(places))
            if now - reported > REPORT_S and done < len(places):
                LOG.info(f"checked {done:,} of {len(places):,} images, {done / (now - started):,.0f} per second")
                reported = now
    dim = {sha256: brightest for sha256, brightest in deep.items() if brightest < DIM}
    if len(dim) > len(deep) / 2:
        LOG.warning(
            f"{len(dim):,} of {plural(len(deep), '16-bit image')} use values up to {max(dim.values()):,} of 65,535 and "
            "look black to the model, as 12-bit values do; multiply the values, by 16 for 12 bits, and save the images "
            "again"
        )
    if not only_hash:  # a stored hash means that the image decodes, and that there is nothing to warn of
        cached.store([None if sha256 in dim else sha256 for sha256 in found])
    return [ReadImage(e, sha) for e, sha in zip(scan.entries, found, strict=True) if sha is not None], bad
