"""A second process that imports `evaluate` and matplotlib while the first one works: they are needed last and cost most.

It knows no torch. Requests go to it in order, one JSON line each with the arrays behind it, and so do the answers.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from headstart.training.metrics_process import serve; serve()"


class InProcess:
    """What a Companion does, done at once in this process: for one that has imported the two libraries already, as in the
    second run of several."""

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def measure(self, probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """metrics.measure of these arrays."""
        from headstart.evaluation.metrics import measure

        return measure(probabilities, labels)

    def draw_selection(self, path: Path, **values: Any) -> None:
        from headstart.report.png import selection

        selection(path, **values)

    def draw_curves(self, path: Path, epochs: list[dict[str, Any]]) -> None:
        from headstart.report.png import curves

        curves(path, epochs)

    def wait(self) -> None:
        pass


def companion() -> "Companion | InProcess":
    """A second process only if this one would have to wait for the imports itself."""
    imported = {"evaluate", "matplotlib.backends.backend_agg"} <= sys.modules.keys()
    return InProcess() if imported else Companion()


class Companion:
    """Started when it is made, ended when the `with` block is left. The first error it meets is raised by the next call."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the run, which ends this process itself
        )

    def __enter__(self) -> "Companion":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # everything asked for was waited for, and its own way out takes half a second
        self._process.communicate()

    def measure(self, probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """metrics.measure of these arrays."""
        self._ask({"do": "measure"}, probabilities, labels)
        values: dict[str, Any] = self._answer()
        return values

    def draw_selection(self, path: Path, **values: Any) -> None:
        """Begin report.png.selection; `wait` sees it through."""
        self._ask({"do": "selection", "path": str(path), **values})

    def draw_curves(self, path: Path, epochs: list[dict[str, Any]]) -> None:
        """Begin report.png.curves; `wait` sees it through."""
        self._ask({"do": "curves", "path": str(path), "epochs": epochs})

    def wait(self) -> None:
        """Until the picture that was asked for is there."""
        self._answer()

    def _ask(self, request: dict[str, Any], *arrays: np.ndarray) -> None:
        assert self._process.stdin is not None
        try:
            about = [{"dtype": array.dtype.str, "shape": array.shape} for array in arrays]
            self._process.stdin.write(json.dumps({**request, "arrays": about}).encode() + b"\n")
            for array in arrays:
                self._process.stdin.write(array.tobytes())
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._fail()
        return json.loads(line)

    def _fail(self) -> None:
        _, complaint = self._process.communicate()
        raise RuntimeError(f"the process that measures ended with {self._process.returncode}:\n{complaint.decode()}")


def serve() -> None:
    """Answer requests until there are no more."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever a library prints must not get between the answers

    # now, while nobody waits for them

    import headstart.evaluation.metrics
    import headstart.report.png  # noqa: F401

    here = InProcess()
    while line := requests.readline():
        request = json.loads(line)
        arrays = [_read_array(requests, **about) for about in request.pop("arrays")]
        answer: Any = None
        match request.pop("do"):
            case "measure":
                answer = here.measure(arrays[0], arrays[1])
            case "curves":
                here.draw_curves(Path(request["path"]), request["epochs"])
            case "selection":
                here.draw_selection(Path(request.pop("path")), **request)
            case unknown:
                raise ValueError(unknown)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _read_array(stream: BinaryIO, *, dtype: str, shape: list[int]) -> np.ndarray:
    flat = np.frombuffer(stream.read(int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype=dtype)
    return flat.reshape(shape)
