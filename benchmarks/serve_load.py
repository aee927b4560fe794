"""headstart serve under many clients at once: median and 99th percentile of the time to an answer, answers a second,
errors.

    python benchmarks/serve_load.py RUN IMAGES [--clients 64] [--requests 1000] [--rounds 3]

RUN: a run folder; IMAGES: a folder, searched for .jpg and .png. Each client waits for its answer before it asks again,
so the clients are never all thinking. Each round measures, in turn, the server as it is, without batches, and with one
thread for the network; the rates of Predictor.predict on the same files, one process alone, say what there is to be
had. The clients are threads of this process and take part of the same cores.
"""

import argparse
import re
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

SETTINGS: dict[str, list[str]] = {
    "as it is": [],
    "without batches": ["--max_batch", "1"],
    "one thread": ["--threads", "1"],
}


@dataclass
class Load:
    """seconds: of each answer; errors: answers that were none."""

    seconds: list[float]
    errors: int
    wall_s: float

    @property
    def rate(self) -> float:
        return len(self.seconds) / self.wall_s

    def percentile(self, share: float) -> float:
        """In ms."""
        return 1000 * sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


def measure(run: str, options: list[str], images: list[bytes], *, clients: int, requests: int) -> Load:
    command = [sys.executable, "-m", "headstart", "serve", run, "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        found = re.search(r":(\d+)/", server.stdout.readline())
        if found is None:
            sys.exit("the server did not start")
        try:
            press(int(found[1]), images, clients=8, requests=32)
            return press(int(found[1]), images, clients=clients, requests=requests)
        finally:
            server.terminate()
            if server.wait(60) != 143:
                print(f"the server ended with {server.returncode}")


def press(port: int, images: list[bytes], *, clients: int, requests: int) -> Load:
    load = Load([], 0, 0.0)
    lock = threading.Lock()
    numbers = iter(range(requests))

    def client() -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                break
            start = time.perf_counter()
            try:
                connection.request("POST", "/predict", images[number % len(images)], {"Content-Type": "image/jpeg"})
                response = connection.getresponse()
                good = response.status == 200 and b'"label"' in response.read()
            except OSError as error:
                print(f"client: {error}")
                good = False
            with lock:
                load.seconds.append(time.perf_counter() - start)
                load.errors += not good
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.wall_s = time.perf_counter() - start
    return load


def alone(run: str, paths: list[Path]) -> float:
    """Images a second of Predictor.predict, in a process of its own."""
    code = (
        "import sys, time, headstart\n"
        "headstart.cli.main.prepare_environment()\n"
        "predictor = headstart.load(sys.argv[1])\n"
        "predictor.predict(sys.argv[2:18])\n"
        "start = time.perf_counter()\n"
        "predictor.predict(sys.argv[2:], batch_size=16)\n"
        "print((len(sys.argv) - 2) / (time.perf_counter() - start))\n"
    )
    return float(subprocess.check_output([sys.executable, "-c", code, run, *map(str, paths)], text=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("images", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    paths = sorted(path for path in args.images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:200]
    images = [path.read_bytes() for path in paths]
    print(f"{len(images)} images of {statistics.median(map(len, images)) / 1024:.0f} KiB, {args.clients} clients")
    rates: dict[str, list[float]] = {}
    for number in range(args.rounds):
        rates.setdefault("predict alone", []).append(alone(args.run, paths))
        print(f"round {number + 1}: predict alone: {rates['predict alone'][-1]:.1f} images/s")
        for name, options in SETTINGS.items():
            load = measure(args.run, options, images, clients=args.clients, requests=args.requests)
            rates.setdefault(name, []).append(load.rate)
            print(
                f"round {number + 1}: {name}: {load.rate:.1f} answers/s, p50 {load.percentile(0.5):.0f} ms, "
                f"p99 {load.percentile(0.99):.0f} ms, {load.errors} errors of {len(load.seconds)}",
                flush=True,
            )
    for name in rates:
        ratios = [rate / other for rate, other in zip(rates[name], rates["as it is"], strict=True)]
        print(
            f"{name}: {statistics.median(rates[name]):.1f} /s, {statistics.median(ratios):.2f} of the server as it is"
        )


if __name__ == "__main__":
    main()
