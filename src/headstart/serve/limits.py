"""Resource limits of one request and of all requests together."""

from dataclasses import dataclass, field
from typing import Any

from headstart.errors import InputError

MAX_WAIT_MS = 10_000
PILLOW_MEGAPIXELS = 89  # Pillow warns of a decompression bomb above this; also the decoder's limit


def _limit(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The defaults fit a photograph of 50 megapixels from a phone and a machine with 4 GB of free memory."""

    megabytes: int = _limit(32, "Largest body of a request, in MiB, counted while it arrives")
    megapixels: int = _limit(64, "Largest image, in megapixels, read from its header before it is decoded")
    images: int = _limit(16, "Largest number of images in a request")
    seconds: float = _limit(30.0, "Longest time to receive a request, and longest time to process it, in seconds")
    requests: int = _limit(128, "Largest number of requests in progress; others get a 503")
    megabytes_together: int = _limit(512, "Largest total of the bodies of all requests in progress, in MiB")
    batch: int = _limit(16, "Largest number of images in a batch of the network")
    wait_ms: float = _limit(2.0, "Longest time to wait to fill a batch, in milliseconds")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            lowest = 0 if name == "wait_ms" else 1
            if not lowest <= value < float("inf"):
                raise InputError(f"--max_{name} is {value}; it must be at least {lowest}")
        if self.wait_ms > MAX_WAIT_MS:
            raise InputError(f"--max_wait_ms is {self.wait_ms:g}; it must be at most {MAX_WAIT_MS}")
        if self.megapixels > PILLOW_MEGAPIXELS:
            raise InputError(f"--max_megapixels is {self.megapixels}; the decoder's own limit is {PILLOW_MEGAPIXELS}")
        if self.megabytes_together < self.megabytes:
            raise InputError(
                f"--max_megabytes_together is {self.megabytes_together}; "
                f"it must be at least --max_megabytes, which is {self.megabytes}"
            )

    @property
    def body_bytes(self) -> int:
        return self.megabytes * 2**20

    @property
    def pixels(self) -> int:
        return self.megapixels * 10**6
