"""What a file is that the decoder cannot read, by its first bytes, and what to do about it. Needs no library."""

import re

HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
AVIF_BRANDS = frozenset({b"avif", b"avis"})
_RAW = "a raw file of a camera{}; develop it, and save it as .jpg or .tif"
_VIDEO = "a video; save single frames of it as images"
_KINDS: tuple[tuple[bytes, str], ...] = (
    (rb"version https://git-lfs\.github\.com/spec/", "a Git LFS pointer and not the image; run git lfs pull"),
    (rb"\S{0,200}/annex/objects/", "a git-annex pointer and not the image; run git annex get"),
    (rb"\s*(<!doctype html|<html|<head|<body)", "an HTML page, such as the error page of a server; download it again"),
    (rb"\s*(<\?xml[^>]*>\s*)?(<!--.{0,500}?-->\s*)?(<!DOCTYPE svg|<svg)", "an SVG drawing; save it as .png"),
    (rb"\s*<\?xml", "an XML file, such as the error message of a server; download it again"),
    (rb"\s*[\[{]\s*[\"\]}\[{]", "a JSON text and not an image"),
    (rb"%PDF-", "a PDF document; save its pages as images"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript file; save it as .png"),
    (rb"8BPS", "a Photoshop file; save it as .png or .jpg"),
    (rb"PK\x03\x04", "a zip archive; unpack it"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ\0|7z\xbc\xaf'\x1c|Rar!", "a compressed archive; unpack it"),
    (rb"\x89HDF|SIMPLE  =", "a scientific file (HDF5 or FITS); save it as .png or 16-bit .tif"),
    (rb"gimp xcf", "a GIMP file; save it as .png"),
    (rb"\x00\x00\x00\x0cJXL |\xff\x0a", "a JPEG XL file; save it as .png or .jpg"),
    (rb"RIFF....AVI |\x1aE\xdf\xa3", _VIDEO),
    (rb"FUJIFILMCCD-RAW", _RAW.format(" (RAF)")),
    (rb"IIU\0", _RAW.format(" (RW2)")),
    (rb"IIR[OS]|MMOR", _RAW.format(" (ORF)")),
    (rb"II\*\0.{4}CR", _RAW.format(" (CR2)")),
    (rb"FOVb", _RAW.format(" (X3F)")),
    (rb"\0MRM", _RAW.format(" (MRW)")),
)
_PATTERNS = tuple((re.compile(pattern, re.DOTALL | re.IGNORECASE), kind) for pattern, kind in _KINDS)
_DNG_VERSION, _SUBFILE, _SUB_IFDS, _PHOTOMETRIC = 50706, 254, 330, 262


def brands_of(data: bytes) -> frozenset[bytes]:
    """The brands of a file of the ISO base media format (HEIF, AVIF, MP4), major and compatible; else none."""
    if data[4:8] != b"ftyp":
        return frozenset()
    end = min(int.from_bytes(data[:4], "big"), 4096)
    return frozenset({data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))})


def is_transformed(data: bytes) -> bool:
    """Whether a HEIF file holds a rotation or a mirroring (ISO/IEC 23008-12, irot and imir in its box meta)."""
    start = 0
    while start + 8 <= len(data):
        length = int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] == b"meta":
            box = data[start : start + length] if length else data[start:]
            return b"\0\0\0\x09irot" in box or b"\0\0\0\x09imir" in box
        start += max(length, 8)
    return False


def kind_of(data: bytes) -> str | None:
    """Such as "a PDF document; save its pages as images"; None for what is not known."""
    for pattern, kind in _PATTERNS:
        if pattern.match(data):
            return kind
    if data[128:132] == b"DICM":
        return "a DICOM file; save it as .png or 16-bit .tif"
    if (brands := brands_of(data)) and not brands & (HEIF_BRANDS | AVIF_BRANDS):  # else an image that is cut off
        return _RAW.format(" (CR3)") if b"crx " in brands else _VIDEO
    if data and not data.strip(b"\0"):
        return "a file of zero bytes, such as an interrupted copy; copy it again"
    return "a text and not an image" if re.fullmatch(rb"[\x20-\x7e\s]+", data[:200]) else None


def raw_kind(tags: "dict[int, object]") -> str | None:
    """The same for a TIFF file with these tags if it is a raw file of a camera, whose first image is a thumbnail."""
    thumbnail = _is_thumbnail(tags.get(_SUBFILE)) and _SUB_IFDS in tags
    if _DNG_VERSION in tags:
        return _RAW.format(" (DNG)")
    return _RAW.format("") if thumbnail or tags.get(_PHOTOMETRIC) in (32803, 34892) else None


def _is_thumbnail(value: object) -> bool:
    return isinstance(value, int) and bool(value & 1)
