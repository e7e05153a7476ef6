"""Do two commits compute the same? Runs the commands of both with fixed seeds, and compares everything that they write.

    python benchmarks/same_results.py 32922d9 HEAD                  # plan, train, fine-tune, predict, evaluate: minutes
    python benchmarks/same_results.py 32922d9 HEAD --demo           # and stunet_demo's Dice: ten minutes more

Each commit is checked out beside the other and installed into an environment of its own that borrows this one's
packages. Compared are plans, preprocessed arrays, every tensor and number of the checkpoints, logs of the losses,
labels, probabilities, and metrics; not compared are times, paths, and what only says so (console output).
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from stunet.weights.checkpoints import load_checkpoint

ROOT = Path(__file__).parents[1]
DATASET = "Dataset999_Phantom"
PHANTOM = (
    "import sys; from pathlib import Path; from stunet.datasets.phantom import make_phantom;"
    "make_phantom(Path(sys.argv[1]), 6, seed=1, held_out=2, shape=(24, 32, 32))"
)
SHORT = ("num_epochs=2", "num_iterations_per_epoch=6", "num_val_iterations_per_epoch=2", "batch_size=2", "momentum=0.9")
TRAIN = ("stunet_train", "999", "3d_fullres", "0", "-device", "cpu", "--set", *SHORT)
MODEL = f"nnUNet_results/{DATASET}"
STEPS = (
    ("stunet_plan_and_preprocess", "-d", "999", "--size", "T", "-c", "3d_fullres"),
    (*TRAIN, "initial_lr=0.02"),
    (*TRAIN, "accumulation=2", "mirror=swap", "seed=3"),
    (*TRAIN, "--pretrained", "FIRST", "--finetune", "lora"),
    (*TRAIN, "--pretrained", "FIRST", "--finetune", "sawtooth", "--set", "num_epochs=4"),
    ("stunet_predict", "-i", f"nnUNet_raw/{DATASET}/imagesTs", "-o", "out", "--model", "FIRST_MODEL",
     "--save_probabilities", "-device", "cpu", "--precision", "fp32"),
    ("stunet_evaluate", f"nnUNet_raw/{DATASET}/labelsTs", "out", "--csv", "out.csv"),
)  # fmt: skip
TOUCHED_NS = 10**18
SHOWN = 20
VOLATILE = re.compile(r"(?i)time|date|_s$|seconds|path|folder|file$|host|version|memory|device|progress")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--demo", action="store_true", help="also run stunet_demo")
    parser.add_argument("-o", type=Path, default=ROOT / "benchmarks/results/same_results.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sides = [
            side(commit(name), Path(scratch) / f"side{number}", args.demo)
            for number, name in enumerate((args.before, args.after))
        ]
    different = sorted(key for key in {*sides[0], *sides[1]} if sides[0].get(key) != sides[1].get(key))
    for key in different[:SHOWN]:
        print(f"differs: {key}: {sides[0].get(key)} and {sides[1].get(key)}")
    dice = {
        key: value for key, value in sides[1].items() if key.endswith("foreground_mean/Dice") or key.startswith("demo")
    }
    content = {
        "before": commit(args.before),
        "after": commit(args.after),
        "compared": len({*sides[0], *sides[1]}),
        "different": different[:SHOWN],
        "dice": dice,
    }
    args.o.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{content['compared']} values compared, {len(different)} differ")
    raise SystemExit(bool(different))


def commit(name: str) -> str:
    """Return the full hash of a commit."""
    found = subprocess.run(["git", "rev-parse", name], cwd=ROOT, capture_output=True, text=True, check=True)
    return found.stdout.strip()


def side(name: str, folder: Path, demo: bool) -> dict[str, Any]:
    """Check out a commit, run its commands, and return what they wrote by name: numbers, texts and hashes."""
    code, work = folder / "code", folder / "work"
    work.mkdir(parents=True)
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(code), name], cwd=ROOT, check=True)
    try:
        programs = install(code, folder / "venv")
        environment = {**os.environ, "nnUNet_n_proc_DA": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        environment |= {f"nnUNet_{part}": str(work / f"nnUNet_{part}") for part in ("raw", "preprocessed", "results")}

        def run(*command: str) -> str:
            print(f"{name[:7]} $ {' '.join(command)}", flush=True)
            command = (str(programs / command[0]), *command[1:])
            done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}\nexit code {done.returncode}")
            return done.stdout

        run("python", "-c", PHANTOM, str(work / "nnUNet_raw" / DATASET))
        for path in work.rglob("*.nii.gz"):
            os.utime(path, ns=(TOUCHED_NS, TOUCHED_NS))  # records hold the time at which raw files were changed
        first = ""
        for step in STEPS:
            given = {"FIRST": f"{first}/fold_0/checkpoint_final.pth", "FIRST_MODEL": first}
            run(*(given.get(word, word) for word in step))
            first = first or next((str(path) for path in sorted((work / MODEL).glob("*"))), "")
        sha256 = hashlib.sha256(Path(first, "fold_0/checkpoint_final.pth").read_bytes()).hexdigest()
        found = {
            hide(key, sha256, work): hide(value, sha256, work) if isinstance(value, str) else value
            for key, value in content(work)
        }
        if demo:
            printed = run("stunet_demo", "-o", str(folder / "demo"), "-device", "cpu")
            found["demo/Dice"] = float(re.findall(r"mean foreground Dice ([\d.]+)", printed)[-1])
        return found
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(code)], cwd=ROOT, check=True)


def hide(text: str, sha256: str, work: Path) -> str:
    """Return a text without the hash of the first checkpoint, which holds times, and without the folder."""
    return text.replace(str(work), "").replace(sha256, "FIRST").replace(sha256[:6], "FIRST")


def install(code: Path, environment: Path) -> Path:
    """Install a checkout into a new environment with this one's packages; return the folder of its programs."""
    venv.create(environment, with_pip=False)
    packages = next((environment / "lib").glob("python*/site-packages"))
    (packages / "borrowed.pth").write_text(str(Path(np.__file__).parents[1]))
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin/python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-e", str(code)], check=True)
    return environment / "bin"


def content(work: Path) -> Iterator[tuple[str, Any]]:
    """Yield every number, text and array (as a hash) of the files under a folder, with a name."""
    import blosc2

    for path in sorted(path for path in work.rglob("*") if path.is_file()):
        name = str(path.relative_to(work))
        if path.name == "debug.json":  # nnU-Net's list of the trainer's attributes
            continue
        if path.suffix == ".json":
            yield from values(name, json.loads(path.read_text()))
        elif path.suffix == ".csv":
            yield name, path.read_text()
        elif path.suffix == ".pth":
            yield from values(name, load_checkpoint(path))
        elif path.suffix == ".b2nd":
            yield name, hashed(blosc2.open(str(path))[:])
        elif path.suffix == ".npz":
            yield from ((f"{name}/{key}", hashed(array)) for key, array in np.load(path).items())
        elif name.endswith((".nii.gz", ".nii")):
            image = sitk.ReadImage(str(path))
            yield f"{name}/voxels", hashed(sitk.GetArrayFromImage(image))
            yield f"{name}/grid", [*image.GetSpacing(), *image.GetOrigin(), *image.GetDirection()]


def values(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested dictionaries and lists."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not VOLATILE.search(str(key)):
                yield from values(f"{name}/{key}", inner)
    elif isinstance(value, list | tuple) and any(isinstance(v, Mapping | list | tuple) for v in value):
        for index, inner in enumerate(value):
            yield from values(f"{name}/{index}", inner)
    elif hasattr(value, "numpy"):
        yield name, hashed(value.detach().cpu().contiguous().numpy())
    else:
        yield name, repr(value)


def hashed(array: np.ndarray) -> str:
    """Return a hash of an array's type, shape and bytes."""
    array = np.ascontiguousarray(array)
    return hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()[:16]


if __name__ == "__main__":
    main()
