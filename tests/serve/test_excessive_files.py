"""Images of 33 MB whose headers would keep a decoder busy for minutes: refused at once, and others are served."""

import struct

import pytest
from support.images import draw
from support.serving import png, running, write_model

import headstart

EXIF = struct.pack(">BBH", 0xFF, 0xE1, 16) + b"Exif\0\0" + b"a" * 8
EXCESSIVE = {
    "a JPEG of Exif segments with junk between them": b"\xff\xd8" + (EXIF + b"\0") * 1_700_000,
    "a JPEG of Exif segments": b"\xff\xd8" + EXIF * 1_800_000,
    "a text image of comments": b"P3\n64 64\n255\n" + b"#\n" * 16_000_000,
}


@pytest.mark.parametrize("name", EXCESSIVE)
def test_it_is_refused_and_the_next_request_is_answered(name: str, tmp_path) -> None:
    assert 30e6 < len(EXCESSIVE[name]) < 33.5e6
    with running(headstart.load(write_model(tmp_path / "model.safetensors"))) as server:
        for _ in range(2):
            reply = server.predict(EXCESSIVE[name])
            assert reply.status == 422
        assert server.predict(png(draw(0, 1))).status == 200
