"""How long does it take to make label maps of a TotalSegmentator subject's masks, and how much memory?

    python benchmarks/convert.py path/to/TotalSegmentator_v2 --cases 4 --processes 1 2 --repeats 3

Takes the first subject of the folder with every voxel repeated, so that it has the size of a real one, and converts it
as often as there are cases: with `stunet_convert totalsegmentator` and, beside it, by a plain loop over the classes in
their order, as upstream does it: float64 masks that overwrite each other, one process, images copied, nothing checked.
Wall and CPU time in seconds, peak memory, all processes together (measuring.py), and whether the label maps are equal.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np
from measuring import run

from stunet.datasets.subjects import MASKS, find_release

OURS = """
import sys
from stunet.cli.convert import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
"""
LOOP = """
import shutil, sys
from pathlib import Path
import nibabel, numpy as np

source, target, image, *names = sys.argv[1:]
Path(target).mkdir()
for subject in sorted(path for path in Path(source).iterdir() if path.is_dir()):
    reference = nibabel.load(subject / image)
    labels = np.zeros(reference.shape, np.uint8)
    for value, name in enumerate(names, start=1):
        labels[nibabel.load(subject / "segmentations" / f"{name}.nii.gz").get_fdata() > 0] = value
    nibabel.save(nibabel.Nifti1Image(labels, reference.affine), Path(target) / f"{subject.name}.nii.gz")
    shutil.copy(subject / image, Path(target) / f"{subject.name}_0000.nii.gz")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with meta.csv and a subject")
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--times", type=int, nargs=3, default=[2, 2, 8], help="voxels that one becomes, per axis")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        release = find_release(args.source)
        shape = enlarge(args.source, work / "data", release.image, args.times, args.cases)
        print(f"{args.cases} cases of {'x'.join(map(str, shape))} voxels, {len(release.names)} masks each\n")
        print(f"{'':12}{'processes':>10}{'wall s':>8}{'CPU s':>8}{'peak MB':>9}")
        for turn in range(args.repeats):
            plain = work / f"plain{turn}"
            loop = [sys.executable, "-c", LOOP, str(work / "data"), str(plain), release.image, *release.names]
            show("plain loop", 1, loop)
            for processes in args.processes:
                raw = work / f"raw{turn}_{processes}"
                raw.mkdir()
                options = ["-d", "1", "--name", "TS", "-np", str(processes), "-o", str(raw), "--order", "official"]
                command = ["totalsegmentator", "-i", str(work / "data"), *options]
                show("stunet", processes, [sys.executable, "-c", OURS, *command])
                print(f"{'':12}{comparison(raw / 'Dataset001_TS' / 'labelsTr', plain)}")


def enlarge(source: Path, target: Path, image: str, times: list[int], cases: int) -> tuple[int, ...]:
    """Writes a subject with every voxel repeated, and links to it as further subjects; returns its shape."""
    subject = next(path for path in sorted(source.iterdir()) if (path / MASKS).is_dir())
    first = target / "s0000"
    for path in (subject / image, *sorted((subject / MASKS).glob("*.nii.gz"))):
        small = nibabel.load(path)
        array = np.asanyarray(small.dataobj)
        for axis, number in enumerate(times):
            array = np.repeat(array, number, axis)
        if path.name == image:  # noise, or a CT would compress like its masks
            array = array + np.random.default_rng(0).integers(-20, 20, array.shape).astype(array.dtype)
        large = first / path.relative_to(subject)
        large.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, small.affine @ np.diag([*(1 / np.array(times)), 1])), large)
    for number in range(1, cases):
        (target / f"s{number:04d}").symlink_to(first)
    lines = ["image_id;split", *(f"s{number:04d};train" for number in range(cases))]
    (target / "meta.csv").write_text("\n".join(lines))
    return tuple(array.shape)


def show(name: str, processes: int, command: list[str]) -> None:
    usage, _ = run(command)
    print(f"{name:12}{processes:10}{usage.wall_s:8.1f}{usage.cpu_s:8.1f}{usage.peak / 1e6:9.0f}", flush=True)


def comparison(ours: Path, plain: Path) -> str:
    """Whether all label maps are the same."""
    paths = sorted(ours.glob("*.nii.gz"))
    same = all(
        np.array_equal(
            np.asanyarray(nibabel.load(path).dataobj), np.asanyarray(nibabel.load(plain / path.name).dataobj)
        )
        for path in paths
    )
    return f"{len(paths)} label maps, all equal: {same}"


if __name__ == "__main__":
    main()
