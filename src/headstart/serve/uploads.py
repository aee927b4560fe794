"""The images in a request's body: a form, or the body itself. Sizes are counted while it arrives; nothing touches the disk."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from headstart.serve.limits import Limits
from headstart.serve.problems import Problem, busy

RAW_TYPES = ("application/octet-stream", "image/")
NAME_CHARACTERS = 255  # of a file's name that are given back


@dataclass(frozen=True)
class Upload:
    """name: as the client calls it, None for a body that is the image itself."""

    name: str | None
    data: bytes


class Room:
    """What all requests together hold at this moment."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.requests = 0
        self.bytes = 0

    def enter(self) -> "Visit":
        """Raises Problem 503 if there are too many."""
        if self.requests >= self._limits.requests:
            raise busy(f"{self._limits.requests} requests are waiting already; try again in a second")
        return Visit(self)

    def take(self, num_bytes: int) -> None:
        """Raises Problem 503 if there would be too many."""
        if self.bytes + num_bytes > self._limits.megabytes_together * 2**20:
            raise busy("the images that are waiting take all the memory set aside for them; try again in a second")
        self.bytes += num_bytes


class Visit:
    """One request's share of the room; `with` gives it back."""

    def __init__(self, room: Room) -> None:
        self._room, self._bytes = room, 0

    def __enter__(self) -> "Visit":
        self._room.requests += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._room.requests -= 1
        self._room.bytes -= self._bytes

    def take(self, num_bytes: int) -> None:
        self._room.take(num_bytes)
        self._bytes += num_bytes


async def read_images(
    content_type: str, content_length: str, chunks: AsyncIterator[bytes], *, visit: Visit, limits: Limits
) -> list[Upload]:
    """At least one image. Raises Problem 400, 413, 415 or 503."""
    kind, options = parse_options_header(content_type)
    is_form = kind == b"multipart/form-data"
    if not is_form and kind and not kind.decode("latin-1").startswith(RAW_TYPES):
        raise Problem(
            415,
            "send the image as the body with Content-Type image/* or application/octet-stream, or files as multipart/form-data",
        )
    too_large = Problem(413, f"the request is larger than {limits.megabytes} MiB")
    if content_length.isdigit() and int(content_length) > limits.body_bytes:
        raise too_large
    form = _Form(options.get(b"boundary", b""), limits) if is_form else None
    parts: list[bytes] = []
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > limits.body_bytes:
            raise too_large
        visit.take(len(chunk))
        if form is not None:
            form.write(chunk)
        else:
            parts.append(chunk)
    return form.finish() if form is not None else [Upload(None, b"".join(parts))]


class _Form:
    """multipart/form-data (RFC 7578), whose every part is a file."""

    def __init__(self, boundary: bytes, limits: Limits) -> None:
        if not boundary:
            raise Problem(400, "the form has no boundary in its Content-Type")
        self._limits = limits
        self._files: list[Upload] = []
        self._ended = False
        self._field = self._value = b""
        self._disposition: bytes | None = None
        self._name = ""
        self._data = bytearray()
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._on_field,
                    "on_header_value": self._on_value,
                    "on_header_end": self._on_header,
                    "on_headers_finished": self._on_headers,
                    "on_part_data": self._on_data,
                    "on_part_end": self._on_part,
                    "on_end": self._on_end,
                },
            )
        except FormParserError:
            raise Problem(400, "the form's boundary is too long") from None

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise Problem(400, "the form is malformed") from None

    def finish(self) -> list[Upload]:
        if not self._ended:
            raise Problem(400, "the form ends too early")
        if not self._files:
            raise Problem(400, "the form holds no file")
        return self._files

    def _begin(self) -> None:
        self._disposition = None
        self._data = bytearray()

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"filename" not in options or options.get(b"name") != b"image":
            raise Problem(
                400,
                "every part of the form must be a file and be called image; options belong into the address, as in /predict?top=3",
            )
        if len(self._files) == self._limits.images:
            raise Problem(400, f"there are more than {self._limits.images} images in one request")
        self._name = options[b"filename"].decode("utf-8", errors="replace")[:NAME_CHARACTERS]

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def _on_part(self) -> None:
        self._files.append(Upload(self._name, bytes(self._data)))

    def _on_end(self) -> None:
        self._ended = True
