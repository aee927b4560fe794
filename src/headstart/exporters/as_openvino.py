"""OpenVINO's intermediate representation: the network alone. Normalised float32 pixels in, logits out."""

import json
from pathlib import Path

import torch

from headstart.exporters.as_onnx import LOGITS, PIXELS, network_graph
from headstart.exporters.original import Original
from headstart.exporters.probabilities import Probabilities, from_pixels
from headstart.files import write_json

_NAME, _DESCRIPTION = "model.xml", "headstart.json"


def write(original: Original, path: Path) -> None:
    """model.xml and model.bin, by way of ONNX; inputs and outputs as in as_onnx.py; class names and preprocessing in
    headstart.json. openvino.convert_model would do the same and send telemetry; the runtime's own reader does not."""
    import openvino

    path.mkdir()
    exact = path / "exact.onnx"
    exact.write_bytes(network_graph(original).SerializeToString())
    openvino.save_model(openvino.Core().read_model(exact), path / _NAME, compress_to_fp16=False)
    exact.unlink()
    write_json(path / _DESCRIPTION, original.metadata())


def open_it(path: Path) -> Probabilities:
    """OpenVINO on the CPU, in fp32: by itself it would take bf16 where the processor has it."""
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
    network = openvino.Core().compile_model(path / _NAME, "CPU", options)
    metadata = json.loads((path / _DESCRIPTION).read_text(encoding="utf-8"))
    return from_pixels(metadata, lambda pixels: network({PIXELS: pixels.numpy()})[LOGITS])
