"""Where labels differ from stock nnU-Net's, is it nnU-Net's half precision that decides?

    python benchmarks/inference_agreement.py --work FOLDER 105

The model and the CT of inference.py, without mirroring, ours in float32. Two comparisons with stock's labels:
`export`: ours of the very logits that stock saved; `all`: ours of the image. For every voxel that differs in the
second, the network runs again in float64, and the gap between the two labels there is held against a bound of what
rounding can do to stock's logits: nnU-Net adds products of logits and weights in numbers of 11 bits, none below 2^-24,
and rounds once more when it resamples.
"""

import argparse
import pickle
from pathlib import Path

import numpy as np
import torch
from inference import case_folder
from inference_models import RECIPES, add_folders, model_folder
from inference_stock import CONFIGURATION, convert, load, preprocess, save_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from stunet.files import read_json
from stunet.inference.engine.export import Axes, Slab, axes_between, label
from stunet.inference.predictor import Options, Predictor

ROUNDING, SMALLEST = 2.0**-11, 2.0**-25  # of a half: relative, and where it is absolute


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_folders(parser)
    parser.add_argument("cases", nargs="*", default=["105"], choices=list(RECIPES))
    args = parser.parse_args()
    for name in args.cases:
        compare(name, args)


def compare(name: str, args: argparse.Namespace) -> None:
    """Prints both agreements, and how the gaps compare with what rounding explains."""
    model, folder = model_folder(name, args.work), args.work / "logits" / name
    (image,) = case_folder(name, args.work, args.data).iterdir()
    if not (folder / "logits.npy").exists():
        print(save_logits(model, image, folder), flush=True)
    stock = stock_labels(model, folder)
    logits = torch.from_numpy(np.load(folder / "logits.npy", mmap_mode="c"))
    axes = axes_between(logits.shape[1:], stock.shape, None, 1)
    exported = np.empty(stock.shape, np.int16)

    def write(start: int, values: torch.Tensor) -> None:
        exported[start : start + len(values)] = values

    label([Slab(0, logits.permute(1, 2, 3, 0).float())], axes, None, write)
    report(f"{name} export", exported != stock)
    options = Options(precision="fp32", mirroring=False)
    ours = np.asarray(Predictor(model, options, [RECIPES[name].fold]).predict(image).labels_DHW)
    differ = np.nonzero(ours != stock)
    report(f"{name} all", ours != stock)
    voxels = [torch.from_numpy(index) for index in differ]
    values, bounds = exact(load(model), image, axes, voxels)
    chosen = torch.from_numpy(ours[differ].astype(np.int64)), torch.from_numpy(stock[differ].astype(np.int64))
    own, theirs = (values.gather(1, each[:, None])[:, 0] for each in chosen)
    allowed = sum(bounds.gather(1, each[:, None])[:, 0] for each in chosen)
    best = values.max(1).values
    print(f"in float64 ours is the largest, or within {float(((best - own) / best.abs()).max()):.1e} of it, relatively")
    shares = (own - theirs) / allowed
    print(
        f"gap to stock's label / what rounding explains: largest {float(shares.max()):.2f}, "
        f"median {float(shares.median()):.3f}; {int((shares > 1).sum())} of {len(shares)} are above 1"
    )


def report(name: str, differ: np.ndarray) -> None:
    """Prints how many voxels differ."""
    print(f"{name}: {differ.sum()} of {differ.size} voxels differ, {1 - differ.mean():.6f} agree", flush=True)


def stock_labels(model: Path, folder: Path) -> np.ndarray:
    """nnU-Net's labels (D, H, W) of the logits that it saved."""
    plans = PlansManager(read_json(model / "plans.json"))
    labels = plans.get_label_manager(read_json(model / "dataset.json"))
    properties = pickle.loads((folder / "properties.pkl").read_bytes())
    shape, box = properties["shape_before_cropping"], properties["bbox_used_for_cropping"]
    if list(plans.transpose_forward) != [0, 1, 2] or [[0, n] for n in shape] != [list(b) for b in box]:
        raise SystemExit("made for images that are neither transposed nor cropped")
    logits = np.load(folder / "logits.npy")
    return np.asarray(convert(logits, plans, plans.get_configuration(CONFIGURATION), labels, properties))


def exact(
    predictor: nnUNetPredictor, image: Path, axes: Axes, voxels: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in float64 at some voxels (N, K), and how far stock's may be from them by rounding (N, K)."""
    image_CDHW, _ = preprocess(predictor, image)
    grid = list(image_CDHW.shape[1:])
    corners, shares = corners_of(axes, voxels)
    points, back = torch.unique(corners.flatten(0, 1), dim=0, return_inverse=True)
    back = back.view(corners.shape[:2])
    predictor.network.double().eval()
    patch = tuple(predictor.configuration_manager.patch_size)
    gaussian = compute_gaussian(patch, dtype=torch.float64, device=torch.device("cpu"))
    classes = predictor.label_manager.num_segmentation_heads
    sums, sizes = (torch.zeros((len(points), classes), dtype=torch.float64) for _ in range(2))
    weights, windows = (torch.zeros((len(points), 1), dtype=torch.float64) for _ in range(2))
    for slicer in predictor._internal_get_sliding_window_slicers(tuple(grid)):
        start = torch.tensor([each.start for each in slicer[1:]])
        inside = ((points >= start) & (points < start + torch.tensor(patch))).all(1)
        if not inside.any():
            continue
        with torch.inference_mode():
            logits = predictor.network(image_CDHW[slicer][None].double())[0]
        at = (points[inside] - start).unbind(1)
        here, weight = logits[(slice(None), *at)].T, gaussian[at][:, None]
        sums[inside] += here * weight
        sizes[inside] += here.abs() * weight
        weights[inside] += weight
        windows[inside] += 1
    # Each addition rounds what is there so far, and each weight is rounded as well; then their sum, and the quotient.
    rounded = (2 * windows + 3) * ROUNDING * sizes + windows * SMALLEST * (1 + sizes / weights)
    values, bounds = sums / weights, rounded / weights
    shares = shares[..., None].double()
    values, bounds = ((each[back] * shares).sum(1) for each in (values, bounds))
    return values, bounds + ROUNDING * values.abs()


def corners_of(axes: Axes, voxels: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The eight grid points around each voxel (N, 8, 3), and their shares in its value (N, 8)."""
    corners, shares = [], []
    for number in range(8):
        sides = [number >> bit & 1 for bit in range(3)]
        pairs = list(zip(axes, voxels, sides, strict=True))
        corners.append(torch.stack([(each.upper if side else each.lower)[at] for each, at, side in pairs], 1))
        parts = [each.fraction[at] if side else 1 - each.fraction[at] for each, at, side in pairs]
        shares.append(parts[0] * parts[1] * parts[2])
    return torch.stack(corners, 1), torch.stack(shares, 1)


if __name__ == "__main__":
    main()
