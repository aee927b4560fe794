"""Limits for what surrounds the pixels of an image file: segments, chunks, comments, tags. Checked before Pillow
opens it, whose readers take quadratic time or many copies of the file for some of these. Needs no library."""

import re
import struct

MOST_PARTS = 65_536
"""Segments or chunks. A large PNG has some thousand chunks, a JPEG some hundred segments."""
MOST_EXIF_SEGMENTS = 64
"""Exif data longer than one segment (64 KiB) are rare; for each segment Pillow copies all earlier ones."""
MOST_SCANS = 50
"""Of a JPEG file. A progressive one has about ten; each takes 0.1 s at 64 megapixels and 90 bytes of the file."""
MOST_COMMENTS = 1000
"""Of a text image (PBM, PGM, PPM); Pillow copies up to a megabyte for each."""
LONGEST_TEXT_HEADER = 65_536

_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def excess_in(data: bytes) -> str | None:
    """The part of an image file that exceeds its limit, or None. Damaged files are left to the decoder."""
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png(data)
        if re.match(rb"P[1-7fFy]", data):
            return _text_header(data)
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _tiff(data)
        if data.startswith((b"GIF87a", b"GIF89a")):
            return _gif(data)
    except (struct.error, IndexError):
        pass
    return None


def _jpeg(data: bytes) -> str | None:
    """ITU-T T.81: markers with a length each, up to the first scan; and the number of scans."""
    offset, parts, exif = 2, 0, 0
    while True:
        parts += 1
        if parts > MOST_PARTS:
            return f"more than {MOST_PARTS:,} segments"
        if data[offset] != 0xFF:  # Pillow skips bytes between segments
            offset = data.find(b"\xff", offset)
            if offset < 0:
                return None
            continue
        marker = data[offset + 1]
        if marker == 0xDA:  # the first scan: no more headers, but progressive files have several scans
            end = data.find(b"\xff\xd9", offset)
            scans = data.count(b"\xff\xda", offset, end if end >= 0 else len(data))
            return f"more than {MOST_SCANS} scans" if scans > MOST_SCANS else None
        if marker in (0x00, 0xFF) or 0xD0 <= marker <= 0xD9:  # padding, or a marker without a length
            offset += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", data, offset + 2)
        if marker == 0xE1 and data[offset + 4 : offset + 10] == b"Exif\0\0":
            exif += 1
            if exif > MOST_EXIF_SEGMENTS:
                return f"more than {MOST_EXIF_SEGMENTS} segments of Exif data"
        offset += 2 + max(2, length)


def _png(data: bytes) -> str | None:
    offset, parts = 8, 0
    while offset + 8 <= len(data):
        parts += 1
        if parts > MOST_PARTS:
            return f"more than {MOST_PARTS:,} chunks"
        if data[offset + 4 : offset + 8] == b"IEND":  # what follows is not read
            return None
        offset += 12 + int.from_bytes(data[offset : offset + 4], "big")
    return None


def _gif(data: bytes) -> str | None:
    """Extension blocks before the first frame."""
    flags = data[10]
    offset, parts = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0), 0
    while data[offset] == 0x21:
        offset += 2
        while (size := data[offset]) != 0:
            parts += 1
            if parts > MOST_PARTS:
                return f"more than {MOST_PARTS:,} blocks"
            offset += size + 1
        parts += 1
        offset += 1
    return None


def _text_header(data: bytes) -> str | None:
    """PBM, PGM, PPM, PFM: a header of words with comments; P1 to P3 go on as text."""
    if data[1:2] in b"123" and data.count(b"#") > MOST_COMMENTS:
        return f"more than {MOST_COMMENTS:,} comments"
    # magic number, width, height, maximum
    words = re.sub(rb"#[^\r\n]*", b"", data[:LONGEST_TEXT_HEADER]).split(None, 4)
    if len(data) > LONGEST_TEXT_HEADER and len(words) < (3 if data[1:2] in b"14" else 4):
        return f"a header of more than {LONGEST_TEXT_HEADER:,} bytes"
    return None


def _tiff(data: bytes) -> str | None:
    """The values of all tags of the first directory; several may share the same bytes, and Pillow copies them for
    each."""
    order = "<" if data[:1] == b"I" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    if count > MOST_PARTS:
        return f"more than {MOST_PARTS:,} tags"
    entry, first = ("HHQ8x", start + 8) if big else ("HHI4x", start + 2)
    total = 0
    for number in range(count):
        tag, kind, values = struct.unpack_from(order + entry, data, first + number * struct.calcsize(order + entry))
        if tag in (273, 324) and values > MOST_PARTS:
            return f"more than {MOST_PARTS:,} strips or tiles"
        total += _TIFF_SIZES.get(kind, 0) * values if values * _TIFF_SIZES.get(kind, 0) <= len(data) else 0
    return "tags that are longer together than the file" if total > len(data) + 65_536 else None
