"""A drawn image folder with faults of every kind among good images, and what the data doctor must say of it."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from headstart.wording import shown

CLASSES = ("beetles", "moths", "spiders")
_GROUND = ((178, 160, 120), (120, 150, 110), (150, 150, 155))
_BODY = ((60, 35, 20), (200, 180, 140), (40, 40, 45))


def scene(code: int, number: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """RGB: an animal near the middle of a ground that its class shares, among leaves and stones; no two are alike."""
    rng = np.random.default_rng([7, code, number])
    width, height, unit = 192, 144, 0.6
    ground = np.array(_GROUND[code % 3]) + rng.normal(0, 12, 3)
    slope = np.linspace(-1, 1, height)[:, None, None] * rng.normal(18, 8)
    image = Image.fromarray((ground + slope + np.zeros((height, width, 3))).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)

    def blob(x: float, y: float, a: float, b: float, colour: np.ndarray) -> None:
        a, b = a * unit, b * unit
        draw.ellipse((x - a, y - b, x + a, y + b), fill=tuple(int(c) for c in colour.clip(0, 255)))

    for _ in range(int(rng.integers(15, 30))):
        blob(*rng.uniform((0, 0), (width, height)), *rng.uniform(4, 38, 2), ground + rng.normal(0, 35, 3))
    x, y = rng.normal((width / 2, height / 2), (21, 15))
    angle, long = rng.uniform(0, 2 * np.pi), rng.uniform(18, 34)
    along, body = np.array([np.cos(angle), np.sin(angle)]), np.array(_BODY[code % 3]) + rng.normal(0, 10, 3)
    for leg in np.linspace(-unit, unit, 4):
        across = np.array([-along[1], along[0]]) * long * unit * (1.6 if code % 3 == 2 else 1.0)
        middle = np.array([x, y]) + along * leg * long
        draw.line([tuple(middle - across), tuple(middle + across)], fill=(30, 25, 20), width=2)
    for step, share in ((-1.0, 0.8), (0.0, 0.6), (0.9, 0.45)):
        blob(x + along[0] * step * long * unit, y + along[1] * step * long * unit, long * share, long * share, body)
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(0.7)), dtype=np.float64)
    noisy = (pixels + rng.normal(0, 5, pixels.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noisy).resize(size, Image.Resampling.LANCZOS)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def altered(image: Image.Image, number: int) -> bytes:
    """A copy that is not the same file: re-encoded, resized, mirrored, or all of it."""
    half = (round(image.width * 0.6), round(image.height * 0.6))
    transforms = (
        lambda: encoded(image, "JPEG", quality=55),
        lambda: encoded(image.resize(half), "PNG"),
        lambda: encoded(ImageOps.mirror(image), "PNG"),
        lambda: encoded(ImageOps.mirror(image).resize(half), "JPEG", quality=70),
    )
    return transforms[number % 4]()


def huge_png(side: int = 60_000) -> bytes:
    """A few bytes that claim so many pixels squared."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def with_exif_segments(jpeg: bytes, count: int) -> bytes:
    return jpeg[:2] + (struct.pack(">BBH", 0xFF, 0xE1, 16) + b"Exif\0\0" + b"a" * 8) * count + jpeg[2:]


def good_folder(root: Path, *, train: int, val: int) -> None:
    """So many scenes per class, JPEG and PNG in turn."""
    for split, count, start in (("train", train, 0), ("val", val, train)):
        for code, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(start, start + count):
                kind, suffix = (("JPEG", ".jpg"), ("PNG", ".png"))[number % 2]
                (folder / f"{number:05d}{suffix}").write_bytes(encoded(scene(code, number), kind))


def plant(root: Path, *, each: int) -> set[tuple[str, tuple[str, ...]]]:
    """`each` faults of every kind in a folder of `good_folder`; the (kind, paths) that have to be found."""
    planted: set[tuple[str, tuple[str, ...]]] = set()
    fresh = iter(range(100_000, 200_000))

    def put(path: str, data: bytes) -> str:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
        return path

    def picture(code: int = 0) -> Image.Image:
        return scene(code, next(fresh))

    def one(kind: str, suffix: str, data: Callable[[int], bytes]) -> None:
        for k in range(each):
            name = CLASSES[k % 3]
            planted.add((kind, (shown(put(f"train/{name}/{kind}_{k}{suffix}", data(k))),)))

    one("empty_file", ".jpg", lambda k: b"")
    one("unreadable", ".jpg", lambda k: np.random.default_rng(k).bytes(3000))
    one(
        "other_kind",
        ".jpg",
        lambda k: (b"<html>404 Not Found</html>", b"version https://git-lfs.github.com/spec/")[k % 2],
    )
    one("dim", ".png", lambda k: encoded(Image.fromarray(np.asarray(picture(k).convert("L"), np.uint16) * 16), "PNG"))
    one("truncated", ".jpg", lambda k: encoded(picture(k), "JPEG")[:2000])
    for k, kind in enumerate(("PNG", "WEBP", "BMP")):
        data = encoded(picture(k), kind)
        path = put(f"train/{CLASSES[k]}/truncated.{kind.lower()}", data[: len(data) // 2])
        planted.add(("truncated", (path,)))
    one("wrong_extension", ".png", lambda k: encoded(picture(k), "JPEG"))
    one("unsupported_type", ".gif", lambda k: encoded(picture(k), "GIF"))
    one("tiny", ".png", lambda k: encoded(scene(k, next(fresh), (12, 9)), "PNG"))
    one("single_colour", ".jpg", lambda k: encoded(Image.new("RGB", (80, 60), (k * 11 % 256, 90, 160)), "JPEG"))
    one("too_large", ".png", lambda k: huge_png())
    one("excessive", ".jpg", lambda k: with_exif_segments(encoded(picture(k), "JPEG"), 100))
    one("unsupported_pixels", ".tif", lambda k: encoded(picture(k).convert("F"), "TIFF"))
    one("animated", ".webp", lambda k: encoded(picture(k), "WEBP", save_all=True, append_images=[picture(k)]))
    one("bad_name", "\udcff.jpg", lambda k: encoded(picture(k), "JPEG"))
    one("hidden", "/.DS_Store", lambda k: b"finder")

    for k in range(each):
        code, name, other = k % 3, CLASSES[k % 3], CLASSES[(k + 1) % 3]
        planted.add(("outside_class", (put(f"train/outside_{k}.jpg", encoded(picture(code), "JPEG")),)))
        put(f"notes_{k}/readme.txt", b"notes")
        planted.add(("unused_folder", (f"notes_{k}",)))
        for split in ("train", "val"):
            (root / split / f"hollow_{k}").mkdir()
            planted.add(("empty_class", (f"{split}/hollow_{k}",)))
        for number in range(10):
            put(f"train/lonely_{k}{' ' * (number % 2)}/{number}.jpg", encoded(picture(code), "JPEG"))
            put(f"val/thin_{k}/{number}.jpg", encoded(picture(code), "JPEG"))
        planted.add(("class_in_one_split", (f"train/lonely_{k}",)))
        planted.add(("alike_names", (f"lonely_{k}", f"lonely_{k} ")))
        for number in range(2):
            put(f"train/thin_{k}/{number}.jpg", encoded(picture(code), "JPEG"))
        planted.add(("near_empty_class", (f"train/thin_{k}",)))

        places = {
            "": f"train/{name}",
            "_across_splits": f"val/{name}",
            "_across_classes": f"train/{other}",
        }
        for scope, folder in places.items():
            for kind in ("duplicate", "near_duplicate"):
                image = picture(code)
                copy = encoded(image, "PNG") if kind == "duplicate" else altered(image, k)
                suffix = ".png" if copy.startswith(b"\x89PNG") else ".jpg"
                paths = (
                    put(f"train/{name}/{kind}{scope}_{k}.png", encoded(image, "PNG")),
                    put(f"{folder}/{kind}{scope}_{k}_copy{suffix}", copy),
                )
                planted.add((kind + scope, tuple(sorted(paths))))
        image = encoded(picture(code), "PNG")
        paths = tuple(sorted(put(f"train/{CLASSES[j % 3]}/missing_{k}_{j}.png", image) for j in range(6)))
        planted.add(("placeholder", paths))
    return planted


def hostile(number: int) -> tuple[str, bytes]:
    """A file name and random bytes, or an image with some of its bytes changed, mostly near the head."""
    rng = np.random.default_rng([3, number])
    kind, suffix = (("JPEG", "jpg"), ("PNG", "png"), ("GIF", "gif"), ("WEBP", "webp"), ("TIFF", "tif"), ("BMP", "bmp"))[
        number % 6
    ]
    if number % 7 == 0:
        return f"noise_{number}.{suffix}", rng.bytes(int(rng.integers(1, 4000)))
    data = bytearray(encoded(scene(0, 0, (48, 36)), kind))
    for _ in range(int(rng.integers(1, 12))):
        limit = min(len(data), (64, 600, len(data))[int(rng.integers(3))])
        data[int(rng.integers(limit))] = int(rng.integers(256))
    # a GIF is looked at under a name that is read, too
    return f"changed_{number}.{'png' if kind == 'GIF' and number % 2 else suffix}", bytes(data)
