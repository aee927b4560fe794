"""What the statistics and the calibration at the end of a run cost, in seconds of processor time.

python benchmarks/calibration_time.py
"""

import time

import numpy as np

from headstart.evaluation import metrics, statistics
from headstart.model.calibration import calibrate, cross_fitted
from headstart.model.softmax import softmax


def main() -> None:
    rng = np.random.default_rng(0)
    for n, num_classes in ((153, 2), (656, 2), (5_000, 10), (20_000, 100)):
        labels = rng.integers(0, num_classes, n)
        logits = rng.normal(0, 1, (n, num_classes)) + 3 * np.eye(num_classes)[labels]
        features = np.abs(rng.normal(0, 1, (n, 512))).astype(np.float32)
        started = time.process_time()
        probabilities = softmax(logits)
        statistics.bootstrap(metrics.log_losses(probabilities, labels), labels)
        statistics.bootstrap(metrics.brier_scores(probabilities, labels), labels)
        metrics.calibration_error(probabilities, labels)
        measured = time.process_time()
        calibrate(logits, labels, features, chosen_on_val=True)
        calibrated = time.process_time()
        metrics.calibration_error(cross_fitted(logits, labels), labels)
        ended = time.process_time()
        print(
            f"{n:6} images, {num_classes:3} classes: intervals {measured - started:.2f} s, "
            f"calibration {calibrated - measured:.2f} s, "
            f"its own measurement {ended - calibrated:.2f} s"
        )


if __name__ == "__main__":
    main()
