"""One run exported to every format; the same validation images through each runtime, as its users open them, beside
headstart predict.

    python benchmarks/export_table.py RUN --data hymenoptera_data [--node FOLDER]

FOLDER has onnxruntime-node and sharp (npm install --ignore-scripts onnxruntime-node sharp). Each runtime decodes the
files itself: Pillow's convert("RGB"), the pipeline's own loader, sharp in JavaScript. The reference is `headstart
predict` in fp32 on the same files; the first row is `headstart predict` in the precision in which the run measured
itself.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

import headstart
from headstart.data.transforms import Preprocess
from headstart.exporters.command import export
from headstart.exporters.formats import FORMATS, check_runtime
from headstart.exporters.original import read_original
from headstart.exporters.probabilities import Probabilities
from headstart.exporters.run_images import RunImages
from headstart.model.find_model import find_model
from headstart.predict.image_paths import images

RUNTIMES = {
    "torchvision": ("torchvision",),
    "transformers": ("transformers",),
    "timm": ("timm",),
    "onnx": ("onnxruntime",),
    "onnx-uint8": ("onnxruntime",),
    "int8": ("onnxruntime",),
    "pt2": ("torch",),
    "openvino": ("openvino",),
}


def from_files(probabilities: Probabilities) -> Callable[[Path], dict[str, float]]:
    return lambda path: dict(probabilities(Image.open(path).convert("RGB")))


def by_pipeline(folder: Path) -> Callable[[Path], dict[str, float]]:
    from transformers import pipeline

    classify = pipeline("image-classification", model=str(folder), device="cpu")
    return lambda path: {row["label"]: row["score"] for row in classify(str(path), top_k=None)}


def with_its_own_processor(folder: Path, spec: Preprocess) -> Callable[[Path], dict[str, float]]:
    """The exported network behind the image processor that transformers would choose: what is not exported, and why."""
    import torch
    from transformers import AutoModelForImageClassification, BitImageProcessor

    model = AutoModelForImageClassification.from_pretrained(str(folder))
    processor = BitImageProcessor(
        size={"shortest_edge": spec.resize_size},
        crop_size={"height": spec.image_size, "width": spec.image_size},
        resample=Image.Resampling.BILINEAR,
        image_mean=list(spec.mean),
        image_std=list(spec.std),
    )

    @torch.inference_mode()
    def answer(path: Path) -> dict[str, float]:
        pixels = processor(Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]
        probabilities = model(pixels).logits.softmax(dim=1)[0].tolist()
        return {model.config.id2label[code]: value for code, value in enumerate(probabilities)}

    return answer


def in_javascript(node: Path, model: Path, paths: list[Path], classes: tuple[str, ...]) -> list[dict[str, float]]:
    script = Path(__file__).with_name("onnx_node.mjs")
    with tempfile.TemporaryDirectory() as place:
        shutil.copy(script, place)
        (Path(place) / "node_modules").symlink_to(node.absolute() / "node_modules")
        done = subprocess.run(
            ["node", script.name, str(model)],
            input="\n".join(map(str, paths)),
            cwd=place,
            text=True,
            check=True,
            stdout=subprocess.PIPE,
        )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    return [dict(zip(classes, row["probabilities"], strict=True)) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="image folder with val/")
    parser.add_argument("--node", type=Path, help="folder with node_modules")
    parser.add_argument("--images", type=int, default=1000, help="at most")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    args = parser.parse_args()
    paths = [path.absolute() for path in [Path(image.path) for image in images([str(args.data / "val")])]]
    paths = paths[:: max(1, -(-len(paths) // args.images))]
    original = read_original(find_model(args.run), RunImages.of(args.run, data=str(args.data)))
    classes = original.info.classes

    def matrix(rows: list[dict[str, float]]) -> np.ndarray:
        return np.array([[row[name] for name in classes] for row in rows])

    def predicted(precision: str) -> np.ndarray:
        found = headstart.load(args.run, device="cpu", precision=precision).predict(paths)
        return matrix([prediction.probabilities or {} for prediction in found])

    reference = predicted("fp32")
    labels = np.array([classes.index(path.parent.name) for path in paths])

    def tell(name: str, runtime: str, allowed: str, found: np.ndarray) -> None:
        difference = np.abs(found - reference).max(axis=1)
        same = int((found.argmax(axis=1) == reference.argmax(axis=1)).sum())
        right = int((found.argmax(axis=1) == labels).sum())
        print(
            f"| {name} | {runtime} | {same} of {len(paths)} | {right} | {difference.max():.1e} "
            f"| {difference.mean():.1e} | {allowed} |",
            flush=True,
        )

    print("| format | opened by | same class | right | largest difference | mean | gate |")
    print("|---|---|---|---|---|---|---|")
    measured = original.info.mixed_precision
    tell(
        f"none, in {'fp32' if measured == 'no' else measured}",
        f"headstart {version('headstart')}",
        "",
        predicted("measured"),
    )
    with tempfile.TemporaryDirectory() as place:
        for name in args.formats:
            format = FORMATS[name]
            check_runtime(format)
            out = Path(place) / f"{name}{format.suffix}"
            parity = export(original, format, out, at_most=1).parity
            answer = by_pipeline(out) if name == "transformers" else from_files(format.open(out))
            runtime = ", ".join(f"{module} {version(module)}" for module in RUNTIMES[name])
            allowed = f"{parity.tolerance:g}{'' if format.largest_loss is None else ' on average'}"
            tell(name, runtime, allowed, matrix([answer(path) for path in paths]))
            if name == "transformers":
                answer = with_its_own_processor(out, original.info.preprocess)
                tell(
                    "not exported",
                    "transformers' BitImageProcessor",
                    "refused",
                    matrix([answer(path) for path in paths]),
                )
            if name == "onnx-uint8" and args.node:
                package = args.node / "node_modules" / "onnxruntime-node" / "package.json"
                told = f"onnxruntime-node {json.loads(package.read_text())['version']}, sharp"
                tell(name, told, allowed, matrix(in_javascript(args.node, out, paths, classes)))


if __name__ == "__main__":
    main()
