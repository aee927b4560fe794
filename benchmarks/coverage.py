"""How often each interval, set and limit holds what it promises: simulated where the truth is known.

    python benchmarks/coverage.py [--draws 2000]

Every row is `draws` made-up validation sets of 153 and of 656 images (those of ants and bees, and of the solar cells).
"""

import argparse
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from headstart.evaluation.metrics import calibration_error
from headstart.evaluation.statistics import (
    balanced_accuracy_interval,
    bootstrap,
    mean_interval,
    newcombe,
    wilson,
)
from headstart.model.calibration import fit_temperature
from headstart.model.conformal import fit_conformal
from headstart.model.open_set import fit_open_set
from headstart.model.softmax import softmax

Draw = Callable[
    [np.random.Generator, int], float
]  # one validation set of n images -> held or not, or the share that was


def logits_of(rng: np.random.Generator, n: int, num_classes: int = 3, spread: float = 1.5) -> tuple:
    """Logits whose softmax is the truth, and labels drawn from it."""
    logits = rng.normal(0, spread, (n, num_classes))
    return logits, (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)


def features_of(rng: np.random.Generator, n: int) -> tuple:
    labels = rng.integers(0, 3, n)
    return np.abs(rng.normal(0, 1, (n, 20)) + 2 * np.eye(3, 20)[labels] + 1), labels


def losses_of(rng: np.random.Generator, n: int) -> tuple:
    labels = np.arange(n) % 2
    return np.log1p(np.exp(rng.normal(-2.0 + 0.5 * labels, 2.0))), labels


DRAWN = losses_of(np.random.default_rng(99), 4_000_000)
TRUE_LOSS, LOSS_OF = DRAWN[0].mean(), [DRAWN[0][DRAWN[1] == label].mean() for label in (0, 1)]


def holds(interval: tuple[float, float] | None, truth: float) -> float:
    assert interval is not None
    return float(interval[0] <= truth <= interval[1])


def accuracy(rng: np.random.Generator, n: int) -> float:
    truth = rng.uniform(0.7, 0.97)
    return holds(wilson(rng.binomial(n, truth), n), truth)


def balanced(rng: np.random.Generator, n: int) -> float:
    total, truth = np.array([n * 5 // 8, n // 4, n // 8]), np.array([0.95, 0.85, 0.6])
    return holds(balanced_accuracy_interval(rng.binomial(total, truth), total), truth.mean())


def loss(rng: np.random.Generator, n: int) -> float:
    return holds(bootstrap(*losses_of(rng, n), draws=500, seed=int(rng.integers(1 << 30))), TRUE_LOSS)


def lonely(rng: np.random.Generator, n: int) -> float:
    """The second class has one image."""
    values = np.log1p(np.exp(rng.normal(-2.0 + 0.5 * (np.arange(n) == n - 1), 2.0)))
    truth = ((n - 1) * LOSS_OF[0] + LOSS_OF[1]) / n
    return holds(bootstrap(values, np.arange(n) == n - 1, draws=500, seed=int(rng.integers(1 << 30))), truth)


def percentile(rng: np.random.Generator, n: int) -> float:
    values, _ = losses_of(rng, n)
    means = values[rng.integers(0, n, (500, n))].mean(axis=1)
    return holds(tuple(np.quantile(means, [0.025, 0.975])), TRUE_LOSS)


def difference(rng: np.random.Generator, n: int) -> float:
    gained, lost, both, _ = rng.multinomial(n, [0.08, 0.03, 0.82, 0.07]).tolist()
    return holds(newcombe(gained=gained, lost=lost, both=both, total=n), 0.05)


def seeds(rng: np.random.Generator, n: int) -> float:
    return holds(mean_interval(rng.normal(0.9, 0.01, 5).tolist()), 0.9)


def chance(rng: np.random.Generator, n: int) -> float:
    logits, labels = logits_of(rng, n)
    found = calibration_error(softmax(logits), labels, seed=int(rng.integers(1 << 30)))
    return float(found.ece <= found.ece_by_chance95)


def sets(confidence: float) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> float:
        logits, labels = logits_of(rng, n, 5)
        fitted = fit_conformal(4 * logits, labels, exact=True)
        logits, labels = logits_of(rng, 200, 5)
        return float(fitted.sets(4 * logits, confidence=confidence)[np.arange(200), labels].mean())

    return draw


def chosen_epoch(rng: np.random.Generator, n: int) -> float:
    """Nine epochs that are equally good, each with errors of its own; the best on the validation images is kept."""
    logits, labels = logits_of(rng, n + 200, 3, 3.0)
    epochs = [logits + rng.normal(0, 1.5, logits.shape) for _ in range(9)]
    best = max(epochs, key=lambda epoch: (epoch[:n].argmax(axis=1) == labels[:n]).sum())
    inside = fit_conformal(best[:n], labels[:n], exact=False).sets(best[n:])
    return float(inside[np.arange(200), labels[n:]].mean())


def confidence(rng: np.random.Generator, n: int) -> float:
    """Accuracy on new images less what the model claims; 0 is calibrated."""
    logits, labels = logits_of(rng, n)
    temperature = fit_temperature(3 * logits, labels)
    logits, labels = logits_of(rng, 1000)
    probabilities = softmax(3 * logits / temperature)
    return float((probabilities.argmax(axis=1) == labels).mean() - probabilities.max(axis=1).mean())


def flagged(share: float, *, held_out: bool) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> float:
        fitted = fit_open_set(*features_of(rng, n), others=features_of(rng, 2 * n) if held_out else None)
        return float(fitted.is_none_of_these(features_of(rng, 100)[0], wrongly_flagged=share).mean())

    return draw


ROWS: list[tuple[str, str, Draw]] = [
    ("accuracy, Wilson", "95.0 %", accuracy),
    ("balanced accuracy, Wilson per class", "95.0 %", balanced),
    ("mean loss, bootstrap-t by class", "95.0 %", loss),
    ("  the same, the second class has one image", "95.0 %", lonely),
    ("  the same by plain percentiles (not used)", "95.0 %", percentile),
    ("difference of two runs, Newcombe", "95.0 %", difference),
    ("mean over 5 seeds, t", "95.0 %", seeds),
    ("calibration error below ece_by_chance95, calibrated model", "95.0 %", chance),
    ("sets of classes, 80 %", "80.0 %", sets(0.8)),
    ("sets of classes, 90 %", "90.0 %", sets(0.9)),
    ("sets of classes, 95 %", "95.0 %", sets(0.95)),
    ("sets of classes, 90 %, best of 9 epochs on the same images", "90.0 %", chosen_epoch),
    ("accuracy less confidence after the temperature", "0.0 %", confidence),
    ("flagged by mistake, training images as reference", "5.0 %", flagged(0.05, held_out=True)),
    ("flagged by mistake, validation images as reference", "5.0 %", flagged(0.05, held_out=False)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    draws = parser.parse_args().draws
    table = Table("what", "promised", "153 images", "656 images")
    for name, promised, draw in ROWS:
        seen = []
        for n in (153, 656):
            rng = np.random.default_rng(0)
            seen.append(f"{np.mean([draw(rng, n) for _ in range(draws)]):.1%}".replace("%", " %"))
        table.add_row(name, promised, *seen)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
