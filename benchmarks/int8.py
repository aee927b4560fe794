"""Throughput of the int8 export beside that of onnx in fp32, and what it costs in accuracy.

    python benchmarks/int8.py RUN --data hymenoptera_data --threads 1 2 --batch 1 8 --rounds 9

Both in onnxruntime on the CPU, interleaved: each round times the same batches in both, and the median of the rounds'
ratios counts, so that a busy machine slows both down alike. Decoding and resizing are not timed.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from headstart.exporters import as_onnx
from headstart.exporters.command import export
from headstart.exporters.formats import FORMATS
from headstart.exporters.original import read_original
from headstart.exporters.run_images import RunImages
from headstart.model.find_model import find_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", help="where the images of the run lie, if not where they lay")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=16, help="per round and model")
    args = parser.parse_args()
    original = read_original(find_model(args.run), RunImages.of(args.run, data=args.data))
    spec = original.info.preprocess
    with tempfile.TemporaryDirectory() as place:
        files = {"fp32": Path(place) / "fp32.onnx", "int8": Path(place) / "int8.onnx"}
        export(original, FORMATS["onnx"], files["fp32"], at_most=1)
        parity = export(original, FORMATS["int8"], files["int8"]).parity
        pixels = np.concatenate(
            [
                spec.normalize(spec.resize_and_crop(image)[None]).numpy()
                for _, image, _ in original.images.of_split("val", at_most=args.images)
            ]
        )
        sizes = {name: path.stat().st_size / 2**20 for name, path in files.items()}
        print(f"file: {sizes['fp32']:.1f} MiB in fp32, {sizes['int8']:.1f} MiB in int8")
        seen = parity.validation
        if seen is None:
            print(f"accuracy not compared: {parity.not_validated}")
        else:
            print(
                f"{seen.n} validation images: {parity.correct} right in int8, {parity.correct_before} in fp32; the "
                f"same class for {seen.same_class}; probabilities differ by {seen.largest:.3f} at most, "
                f"{seen.mean:.4f} on average"
            )
        print("| threads | batch | fp32, images/s | int8, images/s | ratio, median of rounds | lowest | highest |")
        print("|---|---|---|---|---|---|---|")
        for threads in args.threads:
            torch.set_num_threads(threads)  # session() gives onnxruntime as many
            opened = {name: as_onnx.session(path)[0] for name, path in files.items()}
            for batch in args.batch:
                parts = [pixels[start : start + batch] for start in range(0, len(pixels) - batch + 1, batch)]
                seconds: dict[str, list[float]] = {name: [] for name in opened}
                for number in range(args.rounds + 1):
                    for name in sorted(opened, reverse=bool(number % 2)):
                        started = time.perf_counter()
                        for part in parts:
                            opened[name].run([as_onnx.LOGITS], {as_onnx.PIXELS: part})
                        if number:  # the first round warms up
                            seconds[name].append(time.perf_counter() - started)
                ratios = [slow / fast for slow, fast in zip(seconds["fp32"], seconds["int8"], strict=True)]
                rate = {name: batch * len(parts) / statistics.median(values) for name, values in seconds.items()}
                print(
                    f"| {threads} | {batch} | {rate['fp32']:.1f} | {rate['int8']:.1f} "
                    f"| {statistics.median(ratios):.2f} | {min(ratios):.2f} | {max(ratios):.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
