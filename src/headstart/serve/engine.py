"""From the bytes of an image to its prediction: threads that decode, one thread that computes."""

import asyncio
import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL import Image

from headstart.data.decode import UnreadableImage, open_image
from headstart.html import jpeg_uri
from headstart.predict.predictor import Prediction, PredictionOptions, Predictor
from headstart.runtime.hardware import usable_cores
from headstart.serve.batches import Batches
from headstart.serve.limits import Limits
from headstart.serve.problems import Problem
from headstart.serve.schemas import ClassProbability, ImagePrediction, Options
from headstart.serve.uploads import Upload

_Output = tuple[Prediction, list[list[float]] | None]  # and the Grad-CAM map

LARGE_PIXELS = 12 * 10**6
"""Images with more pixels, before or after resizing, are decoded one at a time: each may need a gigabyte of memory."""
JPEG_QUALITY = 90
ICO = b"\0\0\1\0"

_SUPPORTED = "supported formats are JPEG, PNG, WebP, HEIC, AVIF, TIFF, BMP, GIF, PPM, JPEG 2000 and TGA"
_REASONS = {
    "empty_file": "the file is empty",
    "too_large": "the image is too long and thin to be resized for the model; cut it into pieces",
    "unsupported_pixels": "the image has float, signed or 32-bit pixels, whose range is undefined; convert it to 8 or "
    "16 bits",
    "unreadable": f"the file is damaged or not a supported image; {_SUPPORTED}",
    "lacks_extra": "this server cannot read HEIC or AVIF images; send the image as JPEG or PNG",
    "excessive": "the file holds far more comments, segments, scans or tags than images do; save the image again",
    "icon": "ICO files are not supported; send the image as PNG",
}


@dataclass(frozen=True)
class _Item:
    pixels: torch.Tensor  # uint8 (3, S, S)
    options: Options


class Engine:
    """Predicts images of many requests at the same time."""

    def __init__(self, predictor: Predictor, *, limits: Limits, threads: int | None = None) -> None:
        """threads: of the network; None for the usable cores."""
        self.predictor, self._limits = predictor, limits
        self._threads = threads or usable_cores()
        self._decoders = ThreadPoolExecutor(usable_cores(), thread_name_prefix="decode")
        self._large = asyncio.Lock()
        self._batches: Batches[_Item, _Output] = Batches(
            self._compute, largest=limits.batch, wait_s=limits.wait_ms / 1000, start=self._prepare
        )

    def close(self) -> None:
        """After the last request: what was submitted is computed."""
        self._decoders.shutdown()
        self._batches.close()

    async def predict(self, upload: Upload, options: Options) -> ImagePrediction:
        """Raises Problem 413 or 422 for what cannot be decoded."""
        loop = asyncio.get_running_loop()
        try:
            size = await loop.run_in_executor(self._decoders, _check, upload.data, self._limits)
            pixels_read = max(size[0] * size[1], self.predictor.info.preprocess.resized_pixels(size))
            async with self._large if pixels_read > LARGE_PIXELS else contextlib.nullcontext():
                work = loop.run_in_executor(self._decoders, self._preprocess, upload.data, options)
                pixels, preprocessed = await work
        except UnreadableImage as error:  # its own message may name objects of the library
            what, _, _ = str(error).partition(";")
            other = f"the file is {what}; {_SUPPORTED}" if error.kind == "other_kind" else _REASONS["unreadable"]
            raise Problem(422, _REASONS.get(error.kind, other)) from None
        found, gradcam = await asyncio.wrap_future(self._batches.submit(_Item(pixels, options)))
        top = [ClassProbability(name=name, probability=probability) for name, probability in found.top[: options.top]]
        return ImagePrediction(
            name=upload.name,
            label=top[0].name,
            probability=top[0].probability,
            top=tuple(top),
            prediction_set=found.prediction_set,
            none_of_these=found.none_of_these,
            gradcam=gradcam,
            preprocessed=preprocessed,
        )

    def _preprocess(self, data: bytes, options: Options) -> tuple[torch.Tensor, str | None]:
        """uint8 (3, S, S), and the same as a JPEG in a data URI if requested."""
        spec = self.predictor.info.preprocess
        pixels = spec.resize_and_crop(spec.decode(data))
        if not options.preprocessed:
            return pixels, None
        return pixels, jpeg_uri(Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()), quality=JPEG_QUALITY)

    def _prepare(self) -> None:
        torch.set_num_threads(self._threads)  # OpenMP counts threads per thread that starts them
        side = self.predictor.info.preprocess.image_size
        blank = _Item(torch.zeros((3, side, side), dtype=torch.uint8), Options(gradcam=True))
        for size in (1, self._limits.batch):  # the first pass of each shape is slow
            self._compute([blank] * size)

    def _compute(self, batch: Sequence[_Item]) -> list[_Output]:
        outputs = self.predictor.compute(torch.stack([item.pixels for item in batch]))
        options = PredictionOptions(top=max(item.options.top for item in batch))
        predictions = self.predictor.predictions(outputs, options)
        maps = self.predictor.attention(outputs) if any(item.options.gradcam for item in batch) else None
        return [
            (
                self.predictor.prediction(predictions, row, None),
                maps[row].astype(float).round(3).tolist() if maps is not None and item.options.gradcam else None,
            )
            for row, item in enumerate(batch)
        ]


def _check(data: bytes, limits: Limits) -> tuple[int, int]:
    """Width and height from the header. Raises UnreadableImage, and Problem 413 for too many pixels."""
    if data.startswith(ICO):  # Pillow decodes the image inside before it reports the size
        raise UnreadableImage("an icon", kind="icon")
    try:
        with open_image(data) as image:
            size = image.size
    except UnreadableImage as error:
        if error.kind != "too_large":
            raise
        size = (limits.pixels + 1, 1)
    if size[0] * size[1] > limits.pixels:
        raise Problem(413, f"the image has more than {limits.megapixels} megapixels")
    return size
