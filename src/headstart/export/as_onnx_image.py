"""ONNX: from the image to the probabilities. Resizing, crop and normalisation are part of the graph."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from headstart.export.as_onnx import LOGITS, OPSET, PIXELS, describe, network_graph, session
from headstart.export.format import Format
from headstart.export.original import Answer, Original, said_by
from headstart.preprocess import Preprocess

if TYPE_CHECKING:
    import onnx

IMAGE, PROBABILITIES = "image", "probabilities"
_FILTERS = {"bilinear": "linear", "bicubic": "cubic"}


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
    """What `Preprocess.eval_view` and `normalize` do. Integer division floors, and Round halves to even, as Python does there.

    On uint8 onnxruntime's Resize with antialias computes as Pillow does, in two passes of fixed-point numbers; pixels beyond the
    border have no weight (exclude_outside)."""
    side = spec.image_size

    def numbers(values: tuple[float, ...]) -> str:
        return "{" + ", ".join(map(repr, values)) + "}"

    return f"""preprocess (uint8[height, width, 3] {IMAGE}) => (float[1, 3, {side}, {side}] prepared)
    <int64[1] wanted = {{{spec.resize_size}}}, int64[2] square = {{{side}, {side}}}, int64[2] first_two = {{1, 3}},
     int64[2] planes_axes = {{2, 3}}, int64[1] front = {{0}}, float half = {{0.5}}, float white = {{255.0}},
     float[1, 3, 1, 1] channel_mean = {numbers(spec.mean)}, float[1, 3, 1, 1] channel_std = {numbers(spec.std)}>
    {{
        size = Shape <end = 2> ({IMAGE})
        short = ReduceMin <keepdims = 1> (size)
        scaled = Mul (size, wanted)
        resized = Div (scaled, short)
        shape = Concat <axis = 0> (first_two, resized)
        planes = Transpose <perm = [2, 0, 1]> ({IMAGE})
        batch = Unsqueeze (planes, front)
        small = Resize <mode = "{_FILTERS[spec.interpolation]}", antialias = {int(spec.antialias)}, exclude_outside = 1> (batch, "", "", shape)
        spare = Sub (resized, square)
        spare_float = Cast <to = 1> (spare)
        margin = Mul (spare_float, half)
        rounded = Round (margin)
        start = Cast <to = 7> (rounded)
        end = Add (start, square)
        cut = Slice (small, start, end, planes_axes)
        numbers = Cast <to = 1> (cut)
        shares = Div (numbers, white)
        centred = Sub (shares, channel_mean)
        prepared = Div (centred, channel_std)
    }}"""


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
    classes, _ = said_by(metadata)

    def answer(image: Image.Image) -> dict[str, float]:
        probabilities = opened.run([PROBABILITIES], {IMAGE: np.array(image)})[0]
        return dict(zip(classes, probabilities.tolist(), strict=True))

    return answer


FORMAT = Format(
    name="onnx-uint8",
    what="ONNX, RGB image of any size in, probabilities out",
    suffix=".onnx",
    modules=("onnx", "onnxscript", "onnxruntime"),
    extra="onnx",
    tolerance=2e-3,
    write=write,
    open=open_it,
)
