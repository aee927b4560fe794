"""ONNX: from the image to the probabilities. Resizing, crop and normalisation are part of the graph."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headstart.data.transforms import Preprocess
from headstart.exporters.as_onnx import LOGITS, OPSET, PIXELS, describe, network_graph, session
from headstart.exporters.format import Format, answers
from headstart.exporters.original import Answer, Original

if TYPE_CHECKING:
    import onnx

IMAGE, PROBABILITIES = "image", "probabilities"


def write(original: Original, path: Path) -> None:
    """Input `image` uint8 (height, width, 3) RGB of any size, output `probabilities` float32 (C,); class names in the metadata."""
    import onnx

    network = network_graph(original)
    before = _parsed(_before(original.info.preprocess), network.ir_version)
    after = _parsed(_after(len(original.info.classes)), network.ir_version)
    whole = onnx.compose.merge_models(before, network, [("prepared", PIXELS)])
    whole = onnx.compose.merge_models(whole, after, [(LOGITS, "answers")])
    describe(whole, original)
    onnx.checker.check_model(whole, full_check=True)
    path.write_bytes(whole.SerializeToString())


def _before(spec: Preprocess) -> str:
    """What `Preprocess.resize_and_crop` and `normalize` do, to the bit: Pillow's resampling in two passes, each a product with a matrix
    of 22-bit integers (https://github.com/python-pillow/Pillow, src/libImaging/Resample.c), of the rows and columns that the crop keeps.

    ONNX has an operator for it, Resize with antialias, but onnxruntime rounds its weights, so that values on the edge between two
    levels fall to the other side (probabilities differed by up to 0.002), and not every backend has it. An integer of 22 bits is one of
    13 and one of 9, whose products with 8 bits float32 sums exactly, of up to 128 pixels. Rows
    come before columns, but for tall images that shrink, in Pillow 13. Integer division floors, and Round halves to even, as Python does."""
    side = spec.image_size

    def numbers(values: tuple[float, ...]) -> str:
        return "{" + ", ".join(map(repr, values)) + "}"

    return f"""preprocess (uint8[height, width, 3] {IMAGE}) => (float[1, 3, {side}, {side}] prepared)
    <int64[1] wanted = {{{spec.resize_size}}}, int64 side = {{{side}}}, int64[1] front = {{0}}, int64[1] last = {{1}},
     int64 nothing = {{0}}, int64 step = {{1}}, int64 two = {{2}}, float half = {{0.5}}, float white = {{255.0}},
     double zero = {{0.0}}, double one = {{1.0}}, double middle = {{0.5}}, double fixed = {{4194304.0}}, double digit = {{512.0}},
     int32 digit_int = {{512}}, int32 round_up = {{2097152}}, int32 fixed_int = {{4194304}},
     float[3, 1, 1] channel_mean = {numbers(spec.mean)}, float[3, 1, 1] channel_std = {numbers(spec.std)}>
    {{
        size = Shape <end = 2> ({IMAGE})
        short = ReduceMin <keepdims = 1> (size)
        scaled = Mul (size, wanted)
        resized = Div (scaled, short)
        spare = Sub (resized, side)
        spare_float = Cast <to = 1> (spare)
        margin = Mul (spare_float, half)
        rounded = Round (margin)
        start = Cast <to = 7> (rounded)
        planes = Transpose <perm = [2, 0, 1]> ({IMAGE})
        pixels_float = Cast <to = 1> (planes)
        {_weights("x", axis=1, antialias=spec.antialias)}
        x_high_t = Transpose <perm = [1, 0]> (x_high)
        x_low_t = Transpose <perm = [1, 0]> (x_low)
        {_weights("y", axis=0, antialias=spec.antialias)}
        twice_width = Mul (x_length, two)
        is_tall = Greater (y_length, twice_width)
        is_shrunk = Less (y_wanted, y_length)
        rows_first = And (is_tall, is_shrunk)
        levels = If (rows_first) <
            then_branch = tall () => (float[3, {side}, {side}] tall_x_done) {{
                {_pass("tall_y", "y_high, pixels_float", "y_low, pixels_float")}
                {_pass("tall_x", "tall_y_done, x_high_t", "tall_y_done, x_low_t")}
            }},
            else_branch = usual () => (float[3, {side}, {side}] usual_y_done) {{
                {_pass("usual_x", "pixels_float, x_high_t", "pixels_float, x_low_t")}
                {_pass("usual_y", "y_high, usual_x_done", "y_low, usual_x_done")}
            }}
        >
        shares = Div (levels, white)
        centred = Sub (shares, channel_mean)
        normal = Div (centred, channel_std)
        prepared = Unsqueeze (normal, front)
    }}"""


def _weights(name: str, *, axis: int, antialias: bool) -> str:
    """NAME_high and NAME_low: float32 (S, pixels along the axis), the two digits to the base 512 of each weight of 22 bits."""
    return f"""
        {name}_axis = Constant <value_int = {axis}> ()
        {name}_length = Gather <axis = 0> (size, {name}_axis)
        {name}_wanted = Gather <axis = 0> (resized, {name}_axis)
        {name}_start = Gather <axis = 0> (start, {name}_axis)
        {name}_length_double = Cast <to = 11> ({name}_length)
        {name}_wanted_double = Cast <to = 11> ({name}_wanted)
        {name}_scale = Div ({name}_length_double, {name}_wanted_double)
        {name}_support = Max ({name}_scale, one)
        {name}_slope = Div (one, {f"{name}_support" if antialias else "one"})
        {name}_end = Add ({name}_start, side)
        {name}_places = Range ({name}_start, {name}_end, step)
        {name}_places_double = Cast <to = 11> ({name}_places)
        {name}_places_middle = Add ({name}_places_double, middle)
        {name}_centres = Mul ({name}_places_middle, {name}_scale)
        {name}_column = Unsqueeze ({name}_centres, last)
        {name}_pixels = Range (nothing, {name}_length, step)
        {name}_pixels_double = Cast <to = 11> ({name}_pixels)
        {name}_left = Sub ({name}_pixels_double, {name}_column)
        {name}_off = Add ({name}_left, middle)
        {name}_steep = Mul ({name}_off, {name}_slope)
        {name}_far = Abs ({name}_steep)
        {name}_near = Sub (one, {name}_far)
        {name}_triangle = Max ({name}_near, zero)
        {name}_total = ReduceSum <keepdims = 1> ({name}_triangle, last)
        {name}_share = Div ({name}_triangle, {name}_total)
        {name}_many = Mul ({name}_share, fixed)
        {name}_nearly = Add ({name}_many, middle)
        {name}_whole = Floor ({name}_nearly)
        {name}_shifted = Div ({name}_whole, digit)
        {name}_first = Floor ({name}_shifted)
        {name}_back = Mul ({name}_first, digit)
        {name}_second = Sub ({name}_whole, {name}_back)
        {name}_high = Cast <to = 1> ({name}_first)
        {name}_low = Cast <to = 1> ({name}_second)"""


def _pass(name: str, high: str, low: str) -> str:
    """NAME_done: float32, the sums of pixels times weights, rounded to 0..255."""
    return f"""
        {name}_sum_high = MatMul ({high})
        {name}_sum_low = MatMul ({low})
        {name}_int_high = Cast <to = 6> ({name}_sum_high)
        {name}_int_low = Cast <to = 6> ({name}_sum_low)
        {name}_up = Mul ({name}_int_high, digit_int)
        {name}_sum = Add ({name}_up, {name}_int_low)
        {name}_sum_up = Add ({name}_sum, round_up)
        {name}_level = Div ({name}_sum_up, fixed_int)
        {name}_done = Cast <to = 1> ({name}_level)"""


def _after(num_classes: int) -> str:
    return f"""answer (float[n, {num_classes}] answers) => (float[{num_classes}] {PROBABILITIES})
    <int64[1] only = {{0}}>
    {{
        softened = Softmax <axis = 1> (answers)
        {PROBABILITIES} = Squeeze (softened, only)
    }}"""


def _parsed(graph: str, ir_version: int) -> "onnx.ModelProto":
    import onnx

    return onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {OPSET}]>\n{graph}')


def open_it(path: Path) -> Answer:
    """onnxruntime, nothing else."""
    opened, metadata = session(path)
    classes = json.loads(metadata["classes"])

    return answers(classes, lambda image: opened.run([PROBABILITIES], {IMAGE: np.array(image)})[0])


FORMAT = Format(
    name="onnx-uint8",
    what="ONNX, RGB image of any size in, probabilities out",
    suffix=".onnx",
    modules=("onnx", "onnxscript", "onnxruntime"),
    extra="onnx",
    tolerance=1e-3,
    write=write,
    open=open_it,
)
