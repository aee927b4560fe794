"""The expected accuracy of `headstart choose`, beside the highest of the table, for equally good candidates.

The features of each candidate are drawn anew for each draw, with the same class centres and independent noise. All
candidates are equally good, so both are compared with the mean accuracy of the candidates in the same draw.

python benchmarks/winners_curse.py --draws 100 --candidates 20 --images 120
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np

from headstart.evaluation.statistics import wilson
from headstart.selection.nested import best_of, deal_folds, probe, promised

CLASSES, WIDTH, FOLDS = 3, 16, 5


def draw(seed: int, *, candidates: int, images: int) -> tuple[float, float, float, int]:
    """Expected accuracy, highest accuracy, mean accuracy, number of correct images of the expected one."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % CLASSES
    centres = np.random.default_rng(0).normal(0, 0.5, (CLASSES, WIDTH))
    names, strata = [f"{seed} {row}" for row in range(images)], [str(label) for label in labels]
    fold_of = deal_folds(names, strata, classes=sorted(set(strata)), folds=FOLDS, repeats=1, seed=seed)
    probes = [
        probe(
            (rng.normal(0, 1, (images, WIDTH)) + centres[labels]).astype(np.float32),
            labels,
            fold_of,
            num_classes=CLASSES,
        )
        for _ in range(candidates)
    ]
    correct = promised(probes, fold_of)
    mean = float(np.mean([one.accuracy for one in probes]))
    return float(correct.mean()), probes[best_of(probes)].accuracy, mean, int(correct.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--images", type=int, default=120)
    args = parser.parse_args()
    with ProcessPoolExecutor() as pool:
        one = partial(draw, candidates=args.candidates, images=args.images)
        rows = np.array(list(pool.map(one, range(args.draws))))
    truth = float(rows[:, 2].mean())
    print(f"{args.draws} draws of {args.candidates} equal candidates, {args.images} images; mean accuracy {truth:.2%}")
    for column, name in enumerate(("expected accuracy", "highest accuracy")):
        differences = rows[:, column] - rows[:, 2]
        bias, error = differences.mean(), differences.std(ddof=1) / np.sqrt(args.draws)
        print(f"{name}: {rows[:, column].mean():.2%}, {100 * bias:+.2f} points, standard error {100 * error:.2f}")
    intervals = [wilson(int(count), args.images) for count in rows[:, 3]]
    print(
        f"the interval of the expected accuracy contains it in {np.mean([a <= truth <= b for a, b in intervals]):.1%}"
    )


if __name__ == "__main__":
    main()
