"""What one request, and all of them together, may take. Knows nothing heavy."""

from dataclasses import dataclass

from headstart.errors import InputError

LONGEST_WAIT_MS = 10_000
PILLOW_MEGAPIXELS = 89  # what Pillow opens without calling it a bomb; also the decoder's limit


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Defaults fit a photograph of 50 megapixels from a telephone, and a machine with 4 GB to spare."""

    megabytes: int = 32
    """of a request's body, counted while it arrives"""
    megapixels: int = 64
    """of an image, read from its header before it is decoded"""
    images: int = 16
    """in one request"""
    seconds: float = 30.0
    """for a request to arrive, and as long again to be answered"""
    requests: int = 128
    """that are being received or wait for their answer"""
    megabytes_together: int = 512
    """of all the bodies that are being received or wait"""
    batch: int = 16
    """images that the network sees at once"""
    wait_ms: float = 2.0
    """that a batch waits for company"""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            lowest = 0 if name == "wait_ms" else 1
            if not lowest <= value < float("inf"):
                raise InputError(f"--max_{name} is {value}; it must be at least {lowest}")
        if self.wait_ms > LONGEST_WAIT_MS:
            raise InputError(f"--max_wait_ms is {self.wait_ms:g}; it must be at most {LONGEST_WAIT_MS}")
        if self.megapixels > PILLOW_MEGAPIXELS:
            raise InputError(f"--max_megapixels is {self.megapixels}; the decoder's own limit is {PILLOW_MEGAPIXELS}")
        if self.megabytes_together < self.megabytes:
            raise InputError(
                f"--max_megabytes_together is {self.megabytes_together}; one request alone may have {self.megabytes}"
            )

    @property
    def body_bytes(self) -> int:
        return self.megabytes * 2**20

    @property
    def pixels(self) -> int:
        return self.megapixels * 10**6
