"""What does scoring cost: CC-FV against the formula of its public code, and all scores of one candidate?

    python benchmarks/ranking_scores.py
    python benchmarks/ranking_scores.py --recipes unetr --skip_scores

CPU seconds of one thread. The public formula has a matrix square root for every pair of cases and every class; here it
is written from its description, with today's scipy. Both sides get the same random features, and have to agree to 1e-6.
Results stand in benchmarks/results/ranking_scores.json and benchmarks/ranking.md.
"""

import argparse
import os
import platform
import time
from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from threadpoolctl import threadpool_limits

from stunet.files import write_json
from stunet.ranking.pool import DRAWS, draw_cases
from stunet.ranking.sample import BOUNDARY, DECODER, ENCODER, INTERIOR, Facts, Layer, Points, Sample
from stunet.ranking.scores import SCORES

RESULTS = Path(__file__).parent / "results" / "ranking_scores.json"
RECIPES = {  # points of a class and channels of each layer, 20 cases and 4 classes
    "unet": [(100, 256), (200, 128), (400, 64)],
    "unetr": [(100, 192), (200, 96), (400, 48)],
    "nnunet": [(100, 320), (100, 256), (100, 128), (200, 64), (400, 32)],
}
CASES, CLASSES, SEED = 20, 4, 7
POINTS = 1000  # of a class and case, for all scores
DECODER_WIDTHS, ENCODER_WIDTHS = (256, 128, 64, 32, 16), (256, 256, 128, 64, 32, 16)  # STU-Net S, coarse to fine
HEAD = 105
Features = NDArray[np.float32]  # (case, class, point, channel), background first


def features(rs: np.random.RandomState, points: int, channels: int) -> Features:
    """One layer of random features whose classes and cases differ."""
    scale, shift = 1 / np.sqrt(1.0 + np.arange(channels)), 0.5 / (1.0 + np.arange(channels))
    result = np.empty((CASES, CLASSES + 1, points, channels), np.float32)
    for case in range(CASES):
        for label in range(CLASSES + 1):
            rows = rs.standard_normal((points, channels)) * scale + label * shift
            result[case, label] = rows + 0.2 * rs.standard_normal(channels)
    return result


def public_formula(layers: list[Features]) -> float:
    """The score of the public code, pair by pair."""
    total = 0.0
    for layer in layers:
        means = layer.reshape(CASES, -1, layer.shape[-1]).mean(1)
        distances = 0.0
        for label in range(1, CLASSES + 1):
            for i in range(CASES):
                for j in range(i + 1, CASES):
                    distances += wasserstein(layer[i, label], layer[j, label])
            distances *= 1 + 2 / (CASES**2 * CLASSES)
        pairs = [np.square(means[i] - means[j]).sum() for i in range(CASES) for j in range(i + 1, CASES)]
        total += float(np.log(np.mean(1 / np.sqrt(np.array(pairs) + 1e-3)) / distances))
    return total


def wasserstein(a: Features, b: Features) -> float:
    """W2 of fitted Gaussians through the square root of the product of their covariances."""
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(first @ second)
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    return float(np.sqrt(np.abs(shift + np.trace(first + second - 2 * root))))


def ours(layers: list[Features]) -> float:
    """The same score, layer by layer because the recipes have other points in each."""
    total = 0.0
    for layer in layers:
        labels = np.repeat(np.arange(CLASSES + 1), layer.shape[2])
        points = {str(case): Points(labels, np.zeros_like(labels)) for case in range(CASES)}
        rows = {str(case): layer[case].reshape(len(labels), -1) for case in range(CASES)}
        total += SCORES["ccfv-official"].compute(Sample(points, [Layer("layer", DECODER, rows)])).score
    return total


def compare(name: str) -> dict[str, float]:
    """Both sides of one recipe, one after the other."""
    rs = np.random.RandomState(SEED)
    layers = [features(rs, *shape) for shape in RECIPES[name]]
    with threadpool_limits(1):
        start = time.process_time()
        public = public_formula(layers)
        middle = time.process_time()
    own = ours(layers)
    end = time.process_time()
    row = {"public_s": middle - start, "ours_s": end - middle, "times": (middle - start) / (end - middle)}
    print(f"{name}: public {row['public_s']:.2f} s, ours {row['ours_s']:.2f} s, {row['times']:.1f} times", flush=True)
    if abs(public - own) > 1e-6:
        raise SystemExit(f"{name}: public {public!r}, ours {own!r}")
    return {**row, "public": public, "ours": own}


def candidate() -> Sample:
    """One size-S candidate with a head of 105 classes, at 5000 points of each of 20 cases."""
    rs = np.random.RandomState(SEED)
    labels = np.repeat(np.arange(CLASSES + 1), POINTS)
    points = {str(c): Points(labels, np.where(np.arange(len(labels)) % 2, BOUNDARY, INTERIOR)) for c in range(CASES)}

    def layer(part: str, number: int, width: int) -> Layer:
        values = features(rs, POINTS, width)
        return Layer(f"{part}{number}", part, {str(c): values[c].reshape(len(labels), width) for c in range(CASES)})

    layers = [layer(ENCODER, i, width) for i, width in enumerate(ENCODER_WIDTHS)]
    layers += [layer(DECODER, i, width) for i, width in enumerate(DECODER_WIDTHS)]
    predictions = {}
    for case in points:
        logits = rs.standard_normal((len(labels), HEAD)) + 3 * (np.arange(HEAD) == labels[:, None])
        exponentials = np.exp(logits)
        predictions[case] = (exponentials / exponentials.sum(1, keepdims=True)).astype(np.float32)
    return Sample(points, layers, predictions, Facts("STU-Net", "supervised", 14_600_000, 1204))


def all_scores() -> dict[str, dict[str, float]]:
    """CPU seconds of each score: of the statistics, and of DRAWS draws of cases."""
    sample, counts, rows = candidate(), draw_cases(CASES), {}  # scores share what more than one needs
    for name, score in SCORES.items():
        start = time.process_time()
        prepared = score.prepare(sample)
        middle = time.process_time()
        score.scores([prepared], counts)
        end = time.process_time()
        rows[name] = {"statistics_s": middle - start, "draws_s": end - middle}
        print(f"{name}: {middle - start:.2f} s, {DRAWS} draws {end - middle:.2f} s", flush=True)
    print(f"all: {sum(sum(row.values()) for row in rows.values()):.1f} s", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="*", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--skip_scores", action="store_true")
    arguments = parser.parse_args()
    result = {
        "machine": {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "processor": platform.processor()},
        "versions": {"numpy": np.__version__, "scipy": scipy.__version__},
        "ccfv": {name: compare(name) for name in arguments.recipes},
        "scores": {} if arguments.skip_scores else all_scores(),
    }
    if arguments.recipes == list(RECIPES) and not arguments.skip_scores:
        write_json(RESULTS, result)


if __name__ == "__main__":
    main()
