"""From the bytes of an image to the model's answer: threads that decode, one that computes, and a limit on each step."""

import asyncio
import contextlib
import io
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from PIL import Image

from headstart.data.decode import FORMATS, UnreadableImage, check_structure
from headstart.html import jpeg_uri
from headstart.predict.predictor import Answers, Prediction, Predictor, Question
from headstart.runtime.hardware import usable_cores
from headstart.serve.batches import Batches
from headstart.serve.limits import Limits
from headstart.serve.problems import Problem

_T = TypeVar("_T")

LARGE_PIXELS = (
    12 * 10**6
)  # an image above that, or resized to more, is decoded alone: with its conversions it may take a gigabyte
PREVIEW_QUALITY = 90

ICO = b"\0\0\1\0"

_REASONS = {
    "empty_file": "the file is empty",
    "too_large": "the image is too long and thin to be resized to what the model sees; cut it into pieces",
    "unsupported_pixels": "the image has pixels of 32 bits, which have no agreed range; convert it to 8 or 16 bits",
    "unreadable": "this is not an image, or it is damaged; JPEG, PNG, WebP, TIFF, BMP, GIF, PPM, JPEG 2000 and TGA can be read",
    "excessive": "the file holds far more comments, segments, scans or tags than images do; re-save the image",
    "icon": "ICO files are not read here; send the image as PNG",
}


@dataclass(frozen=True)
class Options:
    """What a client wants to know. top: most probable classes; gradcam: where the model looked; view: the pixels it saw."""

    top: int = 5
    gradcam: bool = False
    view: bool = False


@dataclass(frozen=True)
class Answer:
    """heat: (h, w) rows of numbers in [0, 1]; view: a data URI. Both None unless asked for."""

    prediction: Prediction
    heat: list[list[float]] | None
    view: str | None


@dataclass(frozen=True)
class _Seen:
    pixels: torch.Tensor  # uint8 (3, S, S)
    options: Options


class Engine:
    """A model that answers many at once."""

    def __init__(self, predictor: Predictor, *, limits: Limits, threads: int | None = None) -> None:
        """threads: of the network; None for the usable cores."""
        self.predictor, self._limits = predictor, limits
        self._threads = threads or usable_cores()
        self._decoders = ThreadPoolExecutor(usable_cores(), thread_name_prefix="decode")
        self._alone = asyncio.Lock()
        self._batches: Batches[_Seen, tuple[Prediction, list[list[float]] | None]] = Batches(
            self._compute, largest=limits.batch, wait_s=limits.wait_ms / 1000, start=self._prepare
        )

    @property
    def calibrated(self) -> bool:
        return self.predictor.info.calibration is not None

    def close(self) -> None:
        """After the last request: what was submitted is computed."""
        self._decoders.shutdown()
        self._batches.close()

    async def answer(self, data: bytes, options: Options) -> Answer:
        """Raises Problem 413 or 422 for what cannot be decoded."""
        try:
            size = await self._decoding(_check, data, self._limits)
            large = max(size[0] * size[1], self.predictor.info.preprocess.resized_pixels(size)) > LARGE_PIXELS
            async with self._alone if large else contextlib.nullcontext():
                pixels, view = await self._decoding(self._view, data, options)
        except UnreadableImage as error:
            raise _unreadable(error) from None
        prediction, heat = await _result(self._batches.submit(_Seen(pixels, options)))
        return Answer(prediction, heat, view)

    async def _decoding(self, work: Callable[..., _T], *arguments: object) -> _T:
        return await _result(self._decoders.submit(work, *arguments))

    def _view(self, data: bytes, options: Options) -> tuple[torch.Tensor, str | None]:
        spec = self.predictor.info.preprocess
        pixels = spec.resize_and_crop(spec.decode(data))
        return pixels, _picture(pixels) if options.view else None

    def _prepare(self) -> None:
        torch.set_num_threads(self._threads)  # of this thread: OpenMP counts them per thread that starts them
        side = self.predictor.info.preprocess.image_size
        blank = _Seen(torch.zeros((3, side, side), dtype=torch.uint8), Options(gradcam=True))
        for size in (1, self._limits.batch):  # the first pass of each shape is slow
            self._compute([blank] * size)

    def _compute(self, batch: Sequence[_Seen]) -> list[tuple[Prediction, list[list[float]] | None]]:
        outputs = self.predictor.compute(torch.stack([seen.pixels for seen in batch]))
        most = max(seen.options.top for seen in batch)
        answers = self.predictor.answer(outputs, Question(top=most))
        heats = self.predictor.attention(outputs) if any(seen.options.gradcam for seen in batch) else None
        return [
            (
                self._named(answers, row, top=seen.options.top),
                heats[row].astype(float).round(3).tolist() if heats is not None and seen.options.gradcam else None,
            )
            for row, seen in enumerate(batch)
        ]

    def _named(self, answers: Answers, row: int, *, top: int) -> Prediction:
        """A batch is asked for the longest list that anybody in it wants."""
        prediction = self.predictor.named(answers, row, None)
        return replace(prediction, top=prediction.top[:top])


async def _result(future: "Future[_T]") -> _T:
    return await asyncio.wrap_future(future)


def _check(data: bytes, limits: Limits) -> tuple[int, int]:
    """Width and height of the image, by its header. Raises UnreadableImage, and Problem 413 if there are too many."""
    if not data:
        raise UnreadableImage("empty", kind="empty_file")
    if data.startswith(ICO):  # Pillow decodes the image in it before it tells the size
        raise UnreadableImage("an icon", kind="icon")
    check_structure(data)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            size = image.size
    except Image.DecompressionBombError:
        size = (limits.pixels + 1, 1)
    except Exception:  # Pillow's plugins raise what they like
        raise UnreadableImage("not an image") from None
    if size[0] * size[1] > limits.pixels:
        raise Problem(413, f"the image has more than {limits.megapixels} megapixels")
    return size


def _unreadable(error: UnreadableImage) -> Problem:
    """The library's own words stay here: they may name its objects."""
    return Problem(422, _REASONS.get(error.kind, _REASONS["unreadable"]))


def _picture(pixels: torch.Tensor) -> str:
    """uint8 (3, S, S) -> a JPEG as a data URI."""
    return jpeg_uri(Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()), quality=PREVIEW_QUALITY)
