"""The images in the body of a request. Bytes are counted while they arrive, and nothing is written to disk."""

import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from headstart.serve.limits import Limits
from headstart.serve.problems import Problem
from headstart.wording import plural

RAW_TYPES = ("application/octet-stream", "image/")
NAME_CHARACTERS = 255  # longer file names are cut


@dataclass(frozen=True)
class Upload:
    """name: file name in the form, None if the body is the image itself."""

    name: str | None
    data: bytes


class Load:
    """What all requests together hold at this moment: their number, and the bytes of their bodies."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.requests = self.bytes = 0

    @contextmanager
    def request(self) -> Iterator[Callable[[int], None]]:
        """Counts one request until the end of the block, and the bytes that the given function adds to it.

        Both raise Problem 503 if there would be too many."""
        if self.requests >= self._limits.requests:
            raise Problem(503, f"{self._limits.requests} requests are waiting already; try again in a second")
        held = 0

        def add(num_bytes: int) -> None:
            nonlocal held
            if self.bytes + num_bytes > self._limits.megabytes_together * 2**20:
                raise Problem(503, "the images of other requests fill the memory limit; try again in a second")
            self.bytes += num_bytes
            held += num_bytes

        self.requests += 1
        try:
            yield add
        finally:
            self.requests -= 1
            self.bytes -= held


async def read_images(request: Request, add: Callable[[int], None], limits: Limits) -> list[Upload]:
    """At least one image. add: called with the size of each chunk. Raises Problem 400, 413, 415, or what `add` does."""
    kind, options = parse_options_header(request.headers.get("content-type"))
    is_form = kind == b"multipart/form-data"
    if not is_form and kind and not kind.decode("latin-1").startswith(RAW_TYPES):
        raise Problem(
            415,
            "send the image as the body with Content-Type image/* or application/octet-stream, "
            "or files as multipart/form-data",
        )
    if is_form and not options.get(b"boundary"):
        raise Problem(400, "the form has no boundary in its Content-Type")
    too_large = Problem(413, f"the request is larger than {limits.megabytes} MiB")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limits.body_bytes:
        raise too_large

    async def chunks() -> AsyncGenerator[bytes]:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limits.body_bytes:
                raise too_large
            add(len(chunk))
            yield chunk

    if is_form:
        return await _Form(request, chunks(), limits).images()
    return [Upload(None, b"".join([chunk async for chunk in chunks()]))]


class _Form(MultiPartParser):
    """multipart/form-data (RFC 7578), each part of which is a file called image."""

    spool_max_size = sys.maxsize  # files stay in memory

    def __init__(self, request: Request, chunks: AsyncGenerator[bytes], limits: Limits) -> None:
        most = limits.images
        super().__init__(
            request.headers, self._whole(chunks), max_files=most, max_fields=most, max_part_size=limits.body_bytes
        )
        self._num_parts, self._most, self._ended = 0, most, False

    async def images(self) -> list[Upload]:
        try:
            form = await self.parse()
        except (MultiPartException, FormParserError):
            raise Problem(400, "the form is malformed") from None
        try:
            if not form:
                raise Problem(400, "the form holds no file")
            return [await _upload(name, value) for name, value in form.multi_items()]
        finally:
            await form.close()

    async def _whole(self, chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        async for chunk in chunks:
            yield chunk
        if not self._ended:
            raise Problem(400, "the form ends too early")

    def on_part_begin(self) -> None:
        super().on_part_begin()
        self._num_parts += 1
        if self._num_parts > self._most:
            raise Problem(400, f"there are more than {plural(self._most, 'image')} in one request")

    def on_end(self) -> None:
        self._ended = True


async def _upload(name: str, value: UploadFile | str) -> Upload:
    if name != "image" or isinstance(value, str):
        raise Problem(
            400, "each part of the form must be a file called image; options belong in the URL, as in /predict?top=3"
        )
    return Upload((value.filename or "")[:NAME_CHARACTERS], await value.read())
