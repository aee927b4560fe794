"""Whether a server of files can send the parts of a shard in which single images lie."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.asyn import sync

from headstart.errors import InputError
from headstart.wording import one_line


def is_http(filesystem: fsspec.AbstractFileSystem) -> bool:
    return "http" in filesystem.protocol


def information(filesystem: fsspec.AbstractFileSystem, name: str) -> dict[str, Any]:
    """What fsspec reports about a remote file. Raises InputError for one that cannot be read, and OSError."""
    if not is_http(filesystem):
        return dict(filesystem.info(name))
    shown = name.partition("?")[0]  # the query may be a secret
    try:
        about = dict(filesystem.info(name))
    except FileNotFoundError as error:  # fsspec's, for every failure
        raise InputError(f"{shown} cannot be read: {_reason(error.__cause__ or error)}") from None
    if about.get("size") is None:
        raise InputError(
            f"{shown} cannot be read in parts: the server does not report its length (Content-Length); {_WAY_OUT}"
        )
    return about


def check_ranges(filesystem: fsspec.AbstractFileSystem, names: Sequence[str]) -> None:
    """Raise InputError for a server that sends a whole file where a part is requested: reading an image would download
    the shard. One file of each server is asked for one byte."""
    if not is_http(filesystem):
        return
    for name in {urlsplit(name).netloc: name for name in reversed(names)}.values():
        status = sync(filesystem.loop, _status_of_a_byte, filesystem, name)
        if status == 200:
            raise InputError(
                f"{name.partition('?')[0]} cannot be read in parts: the server ignores the header Range, so each image "
                f"would download the whole shard; {_WAY_OUT}"
            )


async def _status_of_a_byte(filesystem: fsspec.AbstractFileSystem, url: str) -> int:
    session = await filesystem.set_session()
    headers = {**filesystem.kwargs.get("headers", {}), "Range": "bytes=0-0", "Accept-Encoding": "identity"}
    async with session.get(filesystem.encode_url(url), **{**filesystem.kwargs, "headers": headers}) as response:
        return int(response.status)  # leaving closes the connection, so that the rest of the file is not sent


def _reason(error: BaseException) -> str:
    status = getattr(error, "status", None)
    if status in (401, 403):
        return f"the server refuses access ({status}); a signed address may have expired"
    if status in (404, 410):
        return f"the server has no such file ({status})"
    if status is not None:
        return f"the server answers with status {status}; try again later"
    return one_line(error) if isinstance(error, Exception) else type(error).__name__


_WAY_OUT = "download the shards and name their folder, or use a server that sends parts (nginx, S3)"
