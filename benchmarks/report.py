"""Time and size of reports: 117 classes x 200 cases, few cases with slices, and what a refresh costs a training.

    python benchmarks/report.py
    python benchmarks/report.py training 3 3d_fullres 0 -device cpu ...    # what reporting takes of a real training

Reports of the first are made of random numbers; nothing but their size and time means anything.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from stunet.report import comparison
from stunet.report.blocks import Block, Page
from stunet.report.compared import Compared
from stunet.report.history import Epoch, write_csv
from stunet.report.page import write
from stunet.report.slices import Sliced, slices
from stunet.report.training import write_fold

CLASSES, CASES, EPOCHS = 117, 200, 1000
SHAPE = (150, 512, 512)  # of the images with slices


def compared(cases: int, classes: int) -> Compared:
    """Return a comparison of random numbers."""
    random = np.random.default_rng(0)
    dice = random.beta(8, 2, (cases, classes))
    reference = random.lognormal(3, 1, dice.shape)
    names = [f"case_{c:03}" for c in range(cases)]
    files = [(Path(f"{name}.nii.gz"), Path(f"{name}.nii.gz")) for name in names]
    others = dice * 0.9, 10 * (1 - dice), reference, reference * random.normal(1, 0.1, dice.shape)
    return Compared(names, [f"class_{k:03}" for k in range(classes)], files, dice, *others, "ml", 1.0)


def case(folder: Path, classes: int) -> tuple[Path, Path, Path]:
    """Write an image, a reference and a prediction with round structures, and return their files."""
    random = np.random.default_rng(0)
    image = random.normal(0, 100, SHAPE).astype(np.int16)
    reference, prediction = np.zeros((2, *SHAPE), np.uint8)
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    for label in range(1, classes + 1):
        centre, radius = random.uniform(0.2, 0.8, 3) * SHAPE, random.uniform(10, 40)
        for array, off in ((reference, 0), (prediction, 3)):
            box = tuple(slice(max(0, int(c - 45)), int(c + 45)) for c in centre)
            away = (2 * (z[box[0]] - centre[0])) ** 2 + (y[:, box[1]] - centre[1] - off) ** 2
            array[box][away + (x[..., box[2]] - centre[2]) ** 2 < radius**2] = label
    paths = folder / "image.nii.gz", folder / "reference.nii.gz", folder / "prediction.nii.gz"
    for path, array in zip(paths, (image, reference, prediction), strict=True):
        made = sitk.GetImageFromArray(array)
        made.SetSpacing((0.8, 0.8, 2.0))
        sitk.WriteImage(made, str(path))
    return paths


def timed(name: str, path: Path, work: object) -> None:
    """Print the seconds that a function takes, and the size of the file that it writes."""
    start = time.perf_counter()
    work()  # type: ignore[operator]
    print(f"{name}: {time.perf_counter() - start:.1f} s, {path.stat().st_size / 1e6:.2f} MB")


def training(words: list[str]) -> None:
    """Run stunet_train, and print how much of its CPU time its pictures and reports took."""
    from selfsupervised import cpu_seconds

    from stunet.cli.train import main as train
    from stunet.trainers.plots import Logger

    spent = dict.fromkeys(("plot_progress_png", "end", "validated"), 0.0)

    def timed_method(method: Any, name: str, *args: Any) -> None:
        start = time.process_time()
        method(*args)
        spent[name] += time.process_time() - start

    for name in spent:
        method = getattr(Logger, name)
        setattr(Logger, name, lambda *args, m=method, n=name: timed_method(m, n, *args))
    code = train(words)
    told = {name: round(seconds, 1) for name, seconds in spent.items()}
    total = cpu_seconds()
    share = sum(spent.values()) / total
    print(json.dumps({"exit_code": code, "cpu_s": round(total, 1), "reporting_s": told, "share": round(share, 4)}))


def main() -> None:
    if sys.argv[1:2] == ["training"]:
        return training(sys.argv[2:])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        many, path = compared(CASES, CLASSES), folder / "many.html"
        timed("first drawing", path, lambda: write(Page("t", "s", comparison.sections(compared(2, 1))), path))
        timed(
            f"{CLASSES} classes x {CASES} cases", path, lambda: write(Page("t", "s", comparison.sections(many)), path)
        )
        image, reference, prediction = case(folder, CLASSES)
        labels = {"background": 0, **{name: k + 1 for k, name in enumerate(many.classes)}}
        dataset = {"labels": labels, "channel_names": {"0": "CT"}}

        def of_case(position: int) -> list[Block]:
            shown = Sliced(
                title=f"{many.cases[position]}: mean Dice 0.5", images=[image], reference=reference,
                prediction=prediction, reader="SimpleITKIO", dataset=dataset, worst=many.classes,
            )  # fmt: skip
            return [slices(shown)]

        work = lambda: write(Page("t", "s", comparison.sections(many, of_case)), path)  # noqa: E731
        timed(f"the same with slices of five images of {SHAPE}", path, work)
        fold = folder / "Dataset003_Liver" / "STUNetTrainer__STUNetPlans_B__3d_fullres" / "fold_0"
        fold.mkdir(parents=True)
        (fold.parent / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz"}))
        values = np.random.default_rng(0).uniform(0, 1, (EPOCHS, 8 + CLASSES)).tolist()
        rows = [Epoch(number, *row[:8], tuple(row[8:])) for number, row in enumerate(values, 1)]
        write_csv(fold / "metrics.csv", rows, many.classes)
        timed(f"refresh after {EPOCHS} epochs of {CLASSES} classes", fold / "report.html", lambda: write_fold(fold))


if __name__ == "__main__":
    main()
