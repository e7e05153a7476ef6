"""Which networks does benchmarks/inference.py predict with? Makes them: trained briefly, so that logits look trained.

    python benchmarks/inference_models.py --work FOLDER --threads 1

TotalSegmentator's subject s0001 (3 mm, planned at 1.5 mm) is learnt with 105, 25 and 5 outputs, and the Decathlon's
hippocampus, for the small case; size S, with 105 outputs also B. 105 outputs are the background and the 104 classes of
TotalSegmentator v1, as in the published weights, of which s0001 shows 38; 24 and 4 classes are unions of masks. It
takes two hours on a CPU; a run that was ended goes on where it was. Read inference.py next.
"""

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import platformdirs
import SimpleITK as sitk

from stunet.datasets import write_dataset_json
from stunet.files import atomic_folder
from stunet.labels import systems
from stunet.workspace import VARIABLES

BIN = Path(sys.executable).parent
CONFIGURATION = "3d_fullres"
# Where along the widest axis the training cases begin, in voxels of 3 mm, and how wide they are: three that overlap.
STARTS, WIDTH = (0, 24, 48), 74
ALONE = "spleen kidney_right kidney_left gallbladder liver stomach aorta inferior_vena_cava pancreas small_bowel"
CLASSES_24 = {
    **{name: (name,) for name in (*ALONE.split(), "duodenum", "colon", "spinal_cord", "costal_cartilages")},
    **{name: (f"{name}*",) for name in ("portal_vein", "adrenal_gland", "iliopsoas", "vertebrae_L", "vertebrae_T")},
    **{name: (f"{name}*",) for name in ("rib_left", "rib_right", "autochthon")},
    **{name: (name.replace("_", "_*_"),) for name in ("lung_left", "lung_right")},
}
CLASSES_4 = {
    "organ": ("spleen", "kidney_*", "gallbladder", "liver", "stomach", "pancreas", "small_bowel", "duodenum", "colon"),
    "lung": ("lung_*",),
    "bone": ("vertebrae_*", "rib_*", "costal_cartilages"),
    "muscle": ("autochthon_*", "iliopsoas_*"),
}


@dataclass(frozen=True)
class Recipe:
    """How a model is made.

    Attributes:
        number: Of its dataset.
        classes: What each is the union of, as patterns of the masks' names; None: the hippocampus's own.
        epochs: Of 25 steps with two patches.
        edges: Of the patch, in voxels.
        size: Of the network.
    """

    number: int
    classes: dict[str, tuple[str, ...]] | None
    epochs: int
    edges: tuple[int, int, int] = (64, 64, 64)
    size: str = "S"

    @property
    def dataset(self) -> str:
        return f"Dataset{self.number}_{'Hippocampus' if self.classes is None else f'Classes{len(self.classes) + 1}'}"

    @property
    def plans(self) -> str:
        """What our planner calls them; those that are trained with have a longer name."""
        return f"STUNetPlans_{self.size}{'' if self.classes is None else '_1.5x1.5x1.5mm'}"

    @property
    def fold(self) -> str:
        """All of the few windows; of the hippocampus only a fold, as every case would be validated too."""
        return "0" if self.classes is None else "all"

    @property
    def values(self) -> list[str]:
        """What `stunet_train --set` takes."""
        patch = ",".join(map(str, self.edges))
        return [
            *(f"num_epochs={self.epochs}", "num_iterations_per_epoch=25", "num_val_iterations_per_epoch=1"),
            *("batch_size=2", "initial_lr=0.02", "momentum=0.9", "oversample_foreground_percent=0.67"),
            f"patch_size=[{patch}]",
        ]


CLASSES_104 = {entry.name: (entry.name,) for entry in systems.load("totalsegmentator-v1").classes}
RECIPES = {
    "105": Recipe(915, CLASSES_104, 16),
    "25": Recipe(925, CLASSES_24, 6),
    "5": Recipe(935, CLASSES_4, 6),
    "small": Recipe(945, None, 4, (40, 56, 40)),
    "105-B": Recipe(915, CLASSES_104, 3, size="B"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_folders(parser)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("models", nargs="*", default=list(RECIPES), help=f"default: {' '.join(RECIPES)}")
    args = parser.parse_args()
    for name in args.models:
        print(name, make(name, args.work, args.data, args.threads), flush=True)


def add_folders(parser: argparse.ArgumentParser) -> None:
    """The options for where the models are kept and where the data are."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    data = Path(os.environ.get("STUNET_TEST_DATA", beside))
    parser.add_argument("--work", type=Path, default=platformdirs.user_cache_path("stunet") / "benchmarks")
    parser.add_argument("--data", type=Path, default=data, help="the folder that STUNET_TEST_DATA names")


def variables(work: Path, threads: int | None = None) -> dict[str, str]:
    """The environment with nnU-Net's folders below `work`; with `threads`, both tools use so many and no GPU."""
    folders = {name: str(work / name) for name in VARIABLES}
    if threads is None:
        return {**os.environ, **folders}
    limits = {"OMP_NUM_THREADS": str(threads), "nnUNet_def_n_proc": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    return {**os.environ, **folders, **limits, "CUDA_VISIBLE_DEVICES": ""}


def model_folder(name: str, work: Path) -> Path:
    """The model folder of a recipe, as nnU-Net names it.

    Raises:
        SystemExit: It was not made yet.
    """
    for path in checkpoints(name, work):
        if path.name == "checkpoint_final.pth":
            return path.parents[1]
    raise SystemExit(f"no model {name!r} in {work}: python benchmarks/inference_models.py --work {work} {name}")


def checkpoints(name: str, work: Path) -> list[Path]:
    """What there is of a model's training."""
    recipe = RECIPES[name]
    results = work / "nnUNet_results" / recipe.dataset
    return list(results.glob(f"*__{recipe.plans}-*__*/fold_{recipe.fold}/checkpoint_*.pth"))


def make(name: str, work: Path, data: Path, threads: int) -> Path:
    """Makes what is missing of a model, and returns its folder."""
    recipe, environment = RECIPES[name], variables(work, threads)
    raw = work / "nnUNet_raw" / recipe.dataset
    raw.parent.mkdir(parents=True, exist_ok=True)

    def run(command: str, *options: str) -> None:
        subprocess.run([str(BIN / command), *options], env=environment, check=True, stdout=sys.stderr)

    number = str(recipe.number)
    if not raw.exists() and recipe.classes is None:
        run("stunet_convert", "msd", "-i", str(data / "Task04_Hippocampus"), "-d", number)
    elif not raw.exists():
        write_windows(data / "TotalSegmentator_v2" / "s0001", raw, recipe.classes)
    spacing = [] if recipe.classes is None else ["-overwrite_target_spacing", "1.5", "1.5", "1.5"]
    run("stunet_plan_and_preprocess", "-d", number, "--size", recipe.size, "-c", CONFIGURATION, *spacing)
    begun = ["--c"] if checkpoints(name, work) else []
    train = [number, CONFIGURATION, recipe.fold, "-p", recipe.plans, "-device", "cpu", *begun]
    run("stunet_train", *train, "--set", *recipe.values)
    return model_folder(name, work)


def write_windows(subject: Path, raw: Path, classes: dict[str, tuple[str, ...]]) -> None:
    """Writes a subject of TotalSegmentator as a dataset of overlapping windows, all with nnU-Net's usual axes."""
    image = sitk.DICOMOrient(sitk.ReadImage(str(subject / "ct.nii.gz")), "LPS")
    values = np.zeros(image.GetSize()[::-1], np.uint8)
    for value, patterns in enumerate(classes.values(), start=1):
        for mask in sorted((subject / "segmentations").glob("*.nii.gz")):
            if any(fnmatchcase(mask.name.removesuffix(".nii.gz"), pattern) for pattern in patterns):
                values[sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(mask)), "LPS")) > 0] = value
    label = sitk.GetImageFromArray(values)
    label.CopyInformation(image)
    with atomic_folder(raw) as folder:
        for kind, whole, ending in (("imagesTr", image, "_0000"), ("labelsTr", label, "")):
            (folder / kind).mkdir()
            for start in STARTS:
                window = whole[start : start + WIDTH, :, :]
                sitk.WriteImage(window, str(folder / kind / f"s0001_{start:02d}{ending}.nii.gz"))
        named = {"background": 0, **{name: value for value, name in enumerate(classes, start=1)}}
        write_dataset_json(folder, raw.name, {0: "CT"}, named, len(STARTS))


if __name__ == "__main__":
    main()
