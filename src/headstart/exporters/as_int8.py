"""ONNX with 8-bit integers: weights and activations quantised, the scales taken from training images of the run."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from headstart.errors import InputError
from headstart.exporters import as_onnx
from headstart.exporters.as_onnx import PIXELS, describe, network_graph
from headstart.exporters.original import Original

CALIBRATION_IMAGES = 200
open_it = as_onnx.open_it


def write(original: Original, path: Path) -> None:
    """Inputs and outputs as in as_onnx.py. Quantise and dequantise nodes around every convolution, weights per channel.

    Raises InputError if the training images of the run cannot be read."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    calibration_images = _reader(original)
    exact, shaped = path.with_name("exact.onnx"), path.with_name("shaped.onnx")
    exact.write_bytes(network_graph(original).SerializeToString())
    # shapes of everything in between; the graph is optimised for a processor when it is opened, not here
    quant_pre_process(exact, shaped, skip_optimization=True, skip_symbolic_shape=True)
    quantize_static(
        shaped,
        path,
        calibration_images,
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,  # without VNNI, sums of two products of 8 bits overflow
        calibrate_method=CalibrationMethod.MinMax,
    )
    exact.unlink()
    shaped.unlink()
    quantised = onnx.load(path)
    describe(quantised, original)
    path.write_bytes(quantised.SerializeToString())


def _reader(original: Original) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    images, spec = original.images, original.info.preprocess
    if images.missing is not None:
        raise InputError(
            f"int8 is calibrated on training images of the run, which cannot be read: {images.missing}; "
            "name the run folder, and with --data where its images lie now"
        )

    found = images.of_split("train", at_most=CALIBRATION_IMAGES)
    first = next(found, None)
    if first is None:
        raise InputError(
            "int8 is calibrated on training images of the run, and none of them is where it was; "
            "name the place with --data"
        )
    inputs = (
        {PIXELS: spec.normalize(spec.resize_and_crop(image)[None]).numpy()} for _, image, _ in chain([first], found)
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(inputs, None)

    return Reader()
