"""OpenVINO's intermediate representation: the network alone. Normalised float32 pixels in, logits out."""

import json
from pathlib import Path

import torch

from headstart.exporters.as_onnx import LOGITS, PIXELS, answers_from_pixels, network_graph
from headstart.exporters.format import Format
from headstart.exporters.original import Answer, Original, said_by

_NAME, _SAID = "model.xml", "headstart.json"


def write(original: Original, path: Path) -> None:
    """model.xml and model.bin, by way of ONNX; inputs and outputs as in exporters/as_onnx.py; class names and preprocessing in headstart.json.

    openvino.convert_model would do the same and report to its makers; the runtime's own reader reports to nobody."""
    import openvino

    path.mkdir()
    exact = path / "exact.onnx"
    exact.write_bytes(network_graph(original).SerializeToString())
    openvino.save_model(openvino.Core().read_model(exact), path / _NAME, compress_to_fp16=False)
    exact.unlink()
    (path / _SAID).write_text(json.dumps(original.metadata(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def open_it(path: Path) -> Answer:
    """OpenVINO on the CPU, in fp32: by itself it would take bf16 where the processor has it."""
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
    network = openvino.Core().compile_model(path / _NAME, "CPU", options)
    classes, spec = said_by(json.loads((path / _SAID).read_text(encoding="utf-8")))

    return answers_from_pixels(classes, spec, lambda pixels: network({PIXELS: pixels})[LOGITS][0])


FORMAT = Format(
    name="openvino",
    what="a folder for OpenVINO, normalised pixels in, logits out",
    suffix="",
    modules=("onnx", "onnxscript", "openvino"),
    extra="openvino",
    tolerance=1e-4,
    write=write,
    open=open_it,
)
