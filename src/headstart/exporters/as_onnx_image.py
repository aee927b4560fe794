"""ONNX: from the image to the probabilities. Resizing, crop and normalisation are part of the graph."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headstart.data.transforms import Preprocess
from headstart.exporters.as_onnx import LOGITS, OPSET, PIXELS, describe, network_graph, session
from headstart.exporters.original import Original
from headstart.exporters.probabilities import Probabilities, from_image

if TYPE_CHECKING:
    import onnx

IMAGE, PREPARED, SCORES, PROBABILITIES = "image", "prepared", "scores", "probabilities"


def write(original: Original, path: Path) -> None:
    """Input `image` uint8 (height, width, 3) RGB of any size, output `probabilities` float32 (C,); class names in the
    metadata."""
    import onnx

    network = network_graph(original)
    num_classes = len(original.info.classes)
    before = _preprocessing(original.info.preprocess)
    after = onnx.parser.parse_model(f"""
        <ir_version: {network.ir_version}, opset_import: ["": {OPSET}]>
        softmax (float[n, {num_classes}] {SCORES}) => (float[{num_classes}] {PROBABILITIES}) {{
            each = Softmax <axis = 1> ({SCORES})
            axes = Constant <value_ints = [0]> ()
            {PROBABILITIES} = Squeeze (each, axes)
        }}""")
    before.ir_version = network.ir_version
    for name, part in (("before", before), ("after", after)):  # names of values in between must not meet
        onnx.compose.add_prefix(part, f"{name}_", rename_inputs=False, rename_outputs=False, inplace=True)
    whole = onnx.compose.merge_models(before, network, [(PREPARED, PIXELS)])
    whole = onnx.compose.merge_models(whole, after, [(LOGITS, SCORES)])
    describe(whole, original)
    onnx.checker.check_model(whole, full_check=True)
    path.write_bytes(whole.SerializeToString())


def _preprocessing(spec: Preprocess) -> "onnx.ModelProto":
    """What `Preprocess.resize_and_crop` and `normalize` do, to the bit: Pillow's resampling in two passes, each a
    product with a matrix of 22-bit integers (https://github.com/python-pillow/Pillow, src/libImaging/Resample.c), of
    the rows and columns that the crop keeps.

    ONNX has an operator for it, Resize with antialias, but onnxruntime rounds its weights, so that values on the edge
    between two levels fall to the other side (probabilities differed by up to 0.002), and not every backend has it. An
    integer of 22 bits is one of 13 and one of 9, whose products with 8 bits float32 sums exactly, of up to 128 pixels.
    Rows come before columns, but for tall images that shrink, in Pillow 13. Integer division floors, and Round halves
    to even, as Python does."""
    import onnx.inliner
    from onnxscript import FLOAT, UINT8, script
    from onnxscript import opset18 as op

    side, resize_size, antialias = spec.image_size, spec.resize_size, float(spec.antialias)
    mean, std = (
        onnx.numpy_helper.from_array(np.array(three, np.float32).reshape(3, 1, 1)) for three in (spec.mean, spec.std)
    )
    float32, int32, int64, float64 = (onnx.TensorProto.DataType.Value(t) for t in ("FLOAT", "INT32", "INT64", "DOUBLE"))

    @script()
    def bilinear(distance):  # type: ignore[no-untyped-def]
        return op.Max(1.0 - distance, op.CastLike(0.0, distance))

    @script()
    def bicubic(distance):  # type: ignore[no-untyped-def]
        """Keys's cubic with a = -0.5."""
        near = (1.5 * distance - 2.5) * distance * distance + 1.0
        far = ((2.5 - 0.5 * distance) * distance - 4.0) * distance + 2.0
        return op.Where(distance < 1.0, near, op.Where(distance < 2.0, far, op.CastLike(0.0, distance)))

    kernel = {"bilinear": bilinear, "bicubic": bicubic}[spec.interpolation]

    @script()
    def weights(length, resized, start):  # type: ignore[no-untyped-def]
        """The two digits to the base 512 of each weight of 22 bits, float32 (side, length)."""
        scale = op.Cast(length, to=float64) / op.Cast(resized, to=float64)
        slope = 1.0 / op.Max(scale * antialias, op.CastLike(1.0, scale))
        centres = op.Unsqueeze((op.Cast(op.Range(start, start + side, 1), to=float64) + 0.5) * scale, [1])
        distance = op.Abs((op.Cast(op.Range(0, length, 1), to=float64) - centres + 0.5) * slope)
        values = kernel(distance)
        share = values / op.ReduceSum(values, [1], keepdims=1) * 4194304.0
        whole = op.Sign(share) * op.Floor(op.Abs(share) + 0.5)
        high = op.Floor(whole / 512.0)
        return op.Cast(high, to=float32), op.Cast(whole - high * 512.0, to=float32)

    @script()
    def levels_of(high, low):  # type: ignore[no-untyped-def]
        """float32: the sums of pixels times weights by digits, rounded to 0..255."""
        total = op.Cast(high, to=int32) * 512 + op.Cast(low, to=int32)
        return op.Clip(op.Cast((total + 2097152) / 4194304, to=float32), 0.0, 255.0)

    @script()
    def preprocess(image):  # type: ignore[no-untyped-def]
        size = op.Shape(image, end=2)
        resized = size * resize_size / op.ReduceMin(size, keepdims=1)
        start = op.Cast(op.Round(op.Cast(resized - side, to=float32) * 0.5), to=int64)
        height, width = op.Gather(size, 0), op.Gather(size, 1)
        y_high, y_low = weights(height, op.Gather(resized, 0), op.Gather(start, 0))
        x_high, x_low = weights(width, op.Gather(resized, 1), op.Gather(start, 1))
        x_high, x_low = op.Transpose(x_high, perm=[1, 0]), op.Transpose(x_low, perm=[1, 0])
        planes = op.Cast(op.Transpose(image, perm=[2, 0, 1]), to=float32)
        if op.And(height > width * 2, op.Gather(resized, 0) < height):
            rows = levels_of(op.MatMul(y_high, planes), op.MatMul(y_low, planes))
            levels = levels_of(op.MatMul(rows, x_high), op.MatMul(rows, x_low))
        else:
            columns = levels_of(op.MatMul(planes, x_high), op.MatMul(planes, x_low))
            levels = levels_of(op.MatMul(y_high, columns), op.MatMul(y_low, columns))
        prepared = op.Unsqueeze((levels / 255.0 - op.Constant(value=mean)) / op.Constant(value=std), [0])
        return prepared

    model = preprocess.to_model_proto(input_types=[UINT8["height", "width", 3]], output_types=[FLOAT[1, 3, side, side]])
    inlined: onnx.ModelProto = onnx.inliner.inline_local_functions(model)
    del inlined.opset_import[1:]  # the domain of the functions that were inlined
    return inlined


def open_it(path: Path) -> Probabilities:
    opened, metadata = session(path)
    classes = json.loads(metadata["classes"])
    return from_image(classes, lambda image: opened.run([PROBABILITIES], {IMAGE: np.array(image)})[0])
