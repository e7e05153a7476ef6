"""What do parts of a run, a list of images and an index cost per case, where there are very many tiny cases?

    python benchmarks/many_cases.py [--cases 10000] [--parts 4] [--commands evaluate predict records] [--folder FOLDER]

One tiny image and label map under many names (hard links, in folders of a hundred), and real commands on them: one run;
the same in parts, one after the other; and the finished run once more (predict with --continue_prediction). What parts
cost is the CPU time that all of them together take more than one run, by case, without what starting takes, which a run
of one case tells. Memory is that of the process at its highest, for all cases and for a tenth. Needs Linux.

`records`: what an index costs without predicting: in one process, made-up results with 104 classes are recorded, looked
for again as when a finished run is started once more, and written as tables.
"""

import argparse
import csv
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import measuring
import numpy as np
import SimpleITK as sitk

from stunet.files import write_json
from stunet.machine import peak_resident, resident
from stunet.parts import Part

SHAPE = (12, 12, 12)
IN_A_FOLDER = 100
CLASSES = 104
COMMANDS = ["evaluate", "predict", "records"]


@dataclass(frozen=True)
class Place:
    """The cases of one number: a list of images, folders of references and predictions, and where results go."""

    root: Path
    cases: int

    def make(self) -> None:
        """Write the files: two that all others are links to."""
        generator = np.random.default_rng(0)
        self.root.mkdir()
        for name, array in (
            ("image", generator.normal(size=SHAPE).astype(np.float32)),
            ("label", generator.integers(0, 3, SHAPE).astype(np.uint8)),
        ):
            sitk.WriteImage(sitk.GetImageFromArray(array), str(self.root / f"{name}.nii.gz"))
        for folder in ("gt", "pred"):
            (self.root / folder).mkdir()
        description = {"labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
        write_json(self.root / "dataset.json", description)
        with (self.root / "scans.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["image", "name"])
            for number in range(self.cases):
                name, folder = f"case_{number:06d}", self.root / "scans" / f"{number // IN_A_FOLDER:04d}"
                folder.mkdir(parents=True, exist_ok=True)
                _link(self.root / "image.nii.gz", folder / f"{name}.nii.gz")
                table.writerow([folder / f"{name}.nii.gz", name])
                for side in ("gt", "pred"):
                    _link(self.root / "label.nii.gz", self.root / side / f"{name}.nii.gz")

    def command(self, name: str, model: Path) -> list[str]:
        """Return a command on these cases."""
        if name == "evaluate":
            words = [self.root / "gt", self.root / "pred", "-np", 1, "-o", self.root / "summary/summary.json"]
        else:
            words = ["-i", self.root / "scans.csv", "-o", self.root / "out", "--model", model, "-device", "cpu"]
            words += ["--shard", 2, "--disable_tta", "--disable_progress_bar", "--threads", 1]
        code = f"import sys\nfrom stunet.cli.{name} import main\nsys.exit(main())"
        return [sys.executable, "-c", code, *map(str, words)]

    def clear(self) -> None:
        """Remove results."""
        for folder in ("summary", "out"):
            shutil.rmtree(self.root / folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    parser.add_argument("--folder", type=Path, help="where the files are made (default: a temporary folder)")
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "STUNET_MODELS": "/nonexistent"}
    heads = ("command", "cases", "wall s", "CPU s", "ms per case", "parts ms", "again CPU s", "MB", "MB at a tenth")
    with tempfile.TemporaryDirectory(dir=args.folder) as root:
        model = Path(root) / "T__P__3d_fullres"
        _make_model(model)
        places = [Place(Path(root) / str(cases), cases) for cases in (1, args.cases // 10, args.cases)]
        for place in places:
            place.make()
        if commands := [name for name in args.commands if name != "records"]:
            print("  ".join(heads))
        for name in commands:
            print("  ".join(measure(name, model, places, args.parts)), flush=True)
        if "records" in args.commands:
            records(places[-1])


def measure(name: str, model: Path, places: list[Place], parts: int) -> list[str]:
    """Return the cells of a row."""
    start, tenth, one = (measuring.run(place.command(name, model))[0] for place in places)
    command, again = places[-1].command(name, model), ""
    if name == "predict":
        again = f"{measuring.run([*command, '--continue_prediction'])[0].cpu_s:.1f} (start {start.cpu_s:.1f})"
    places[-1].clear()
    several = [measuring.run([*command, "-num_parts", str(parts), "-part_id", str(part)])[0] for part in range(parts)]
    cases = places[-1].cases
    per_case = (one.cpu_s - start.cpu_s) / cases
    in_parts = (sum(each.cpu_s for each in several) - parts * start.cpu_s) / cases
    numbers = (f"{one.wall_s:.1f}", f"{one.cpu_s:.1f}", f"{1e3 * per_case:.1f}", f"{1e3 * (in_parts - per_case):.2f}")
    return [name, str(cases), *numbers, again or "-", f"{one.peak / 1e6:.0f}", f"{tenth.peak / 1e6:.0f}"]


def records(place: Place) -> None:
    """Print what it takes to record the cases, to find them done, and to write the tables."""
    from stunet.inference.cases import InputCase
    from stunet.inference.index import Index, stamp

    index, volumes = Index(place.root / "pred", Part()), {f"class_{number:03d}": 1234.5 for number in range(CLASSES)}
    with (place.root / "scans.csv").open(newline="") as file:
        cases = [InputCase(row["name"], (Path(row["image"]),)) for row in csv.DictReader(file)]
    results = [index.folder / f"{case.name}.nii.gz" for case in cases]

    def add() -> None:
        with index.begin() as log:
            for case, result in zip(cases, results, strict=True):
                index.add(log, case, stamp(case), result, 1.0, volumes, None)

    def look() -> None:
        known = index.known()
        assert all(index.is_done(known.get(case.name), case, file) for case, file in zip(cases, results, strict=True))

    for name, function in (
        ("recorded", add), ("found done", look), ("tables", lambda: index.write_tables([case.name for case in cases]))
    ):  # fmt: skip
        before, started = resident(), time.process_time()
        function()
        cpu_s = time.process_time() - started
        more = (peak_resident() - before) / 1e6
        per_case = 1e3 * cpu_s / len(cases)
        print(f"{name:10} {len(cases)} cases  {cpu_s:.2f} CPU s  {per_case:.3f} ms per case  {more:.0f} MB")


def _make_model(folder: Path) -> None:
    """A tiny model with random weights, of the tests."""
    code = f"from pathlib import Path\nfrom tests.predictor_models import make_model\nmake_model(Path({str(folder)!r}))"
    measuring.run([sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})


def _link(source: Path, target: Path) -> None:
    """A hard link; a copy, which new links are then made to, where the file has as many as it can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)
        os.replace(target, source)
        os.link(source, target)


if __name__ == "__main__":
    main()
