"""ONNX: the network alone. Normalised float32 pixels in, logits out."""

import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from headstart.exporters.original import Original
from headstart.exporters.probabilities import Probabilities, from_pixels

if TYPE_CHECKING:
    import onnx
    import onnxruntime

OPSET = 18  # the first with an antialiased Resize
PIXELS, LOGITS = "pixels", "logits"


def write(original: Original, path: Path) -> None:
    """Input `pixels` float32 (n, 3, S, S), output `logits` float32 (n, C), for any n; class names and preprocessing in
    the metadata."""
    path.write_bytes(network_graph(original).SerializeToString())


def network_graph(original: Original) -> "onnx.ModelProto":
    """BatchNorm is folded into the convolutions."""
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
    model = program.model_proto  # made anew each time that it is read
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]  # notes on the Python code that it came from
        part.doc_string = ""
    return bytes(model.SerializeToString())


def describe(model: "onnx.ModelProto", original: Original) -> None:
    """Name the producer, and put the description of the original into the metadata."""
    import onnx

    model.producer_name = model.graph.name = "headstart"
    onnx.helper.set_model_props(model, original.metadata())


def session(path: Path) -> "tuple[onnxruntime.InferenceSession, dict[str, str]]":
    """On the CPU, with as many threads as torch has; and the metadata."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    opened = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return opened, opened.get_modelmeta().custom_metadata_map


def open_it(path: Path) -> Probabilities:
    """onnxruntime; the preprocessing is done as the metadata say."""
    opened, metadata = session(path)
    return from_pixels(metadata, lambda pixels: opened.run([LOGITS], {PIXELS: pixels.numpy()})[0])
