"""ONNX: the network alone. Normalised float32 pixels in, logits out."""

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from headstart.data.transforms import Preprocess
from headstart.exporters.format import Format, answers
from headstart.exporters.original import Answer, Original, said_by
from headstart.model.softmax import softmax

if TYPE_CHECKING:
    import onnx
    import onnxruntime

OPSET = 18  # the first with an antialiased Resize
PIXELS, LOGITS = "pixels", "logits"


def write(original: Original, path: Path) -> None:
    """Input `pixels` float32 (n, 3, S, S), output `logits` float32 (n, C), for any n; class names and preprocessing in the metadata."""
    path.write_bytes(network_graph(original).SerializeToString())


def network_graph(original: Original) -> "onnx.ModelProto":
    """BatchNorm is folded into the convolutions. Without notes on the Python code that it came from."""
    import onnx

    model: onnx.ModelProto = onnx.ModelProto.FromString(
        _exported(original.network, original.info.preprocess.image_size)
    )
    describe(model, original)
    return model


@lru_cache(maxsize=2)  # several formats begin with it, and it takes seconds
def _exported(network: torch.nn.Module, side: int) -> bytes:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own future
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, side, side),),  # two, because a batch of one would be taken for a constant
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("n")},),
            input_names=[PIXELS],
            output_names=[LOGITS],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _forget_the_source(model)
    return bytes(model.SerializeToString())


def describe(model: "onnx.ModelProto", original: Original) -> None:
    """Name the producer, and put what the original says of itself into the metadata."""
    import onnx

    model.producer_name = "headstart"
    model.graph.name = "headstart"
    onnx.helper.set_model_props(model, original.metadata())


def _forget_the_source(model: "onnx.ModelProto") -> None:
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def session(path: Path) -> "tuple[onnxruntime.InferenceSession, dict[str, str]]":
    """On the CPU, with as many threads as torch has; and the metadata."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    opened = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return opened, opened.get_modelmeta().custom_metadata_map


def open_it(path: Path) -> Answer:
    """onnxruntime; the preprocessing is done as the metadata say."""
    opened, metadata = session(path)
    classes, spec = said_by(metadata)

    return answers_from_pixels(classes, spec, lambda pixels: opened.run([LOGITS], {PIXELS: pixels})[0][0])


def answers_from_pixels(classes: Sequence[str], spec: Preprocess, logits: Callable[[np.ndarray], np.ndarray]) -> Answer:
    """logits: of an opened network, float32 (1, 3, S, S), normalised -> (C,)."""
    return answers(classes, lambda image: softmax(logits(spec.normalize(spec.resize_and_crop(image)[None]).numpy())))


FORMAT = Format(
    name="onnx",
    what="ONNX, normalised pixels in, logits out",
    suffix=".onnx",
    modules=("onnx", "onnxscript", "onnxruntime"),
    extra="onnx",
    tolerance=1e-4,
    write=write,
    open=open_it,
)
