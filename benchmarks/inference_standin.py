"""What is as large as a real prediction, but cheap? A synthetic CT, and a stand-in for the network.

    python benchmarks/inference_standin.py image PLANS LENGTH EDGE FILE
    python benchmarks/inference_standin.py predict MODEL FILE OUT

The CT consists of cells of one brightness each; the stand-in gives each brightness a class, and logits as smooth
as a network's. inference_large.py measures the second command.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.nn import functional as F

from stunet.files import atomic_write, read_json
from stunet.inference.cases import find_cases
from stunet.inference.engine.optimized import ReadyNetwork
from stunet.inference.pipeline import Pipeline
from stunet.inference.predictor import Options, Predictor

CLASSES = 105
SPACING_XYZ = (0.8, 0.8, 1.0)
CELL_MM = 60  # edge of the cube that a cell is as large as, on average
BLOCK = 4  # voxels from one sample of the stand-in to the next; between them logits are interpolated
GAIN, PATTERN = 12.0, 2.0  # logit of the class seen, and standard deviation of all others'


class StandIn(nn.Module):
    """Takes the class from the brightness of every 4th voxel per axis, and interpolates between these logits."""

    def __init__(self, low: float, high: float) -> None:
        """Brightness after normalisation: `low` is background, `high` the last class."""
        super().__init__()
        self.low, self.high = low, high
        self.anchor = nn.Parameter(torch.zeros(1))  # a network has a device and a type

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        sampled = x_BCDHW[:, 0, BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK]
        seen = ((sampled.float() - self.low) * ((CLASSES - 1) / (self.high - self.low))).round().long()
        coarse = F.one_hot(seen.clamp(0, CLASSES - 1), CLASSES).movedim(-1, 1) * GAIN
        noise = torch.randn(coarse.shape[1:], generator=torch.Generator().manual_seed(0)) * PATTERN
        return F.interpolate((coarse + noise).to(x_BCDHW), size=x_BCDHW.shape[2:], mode="trilinear")


def brightness(plans: dict) -> tuple[float, float]:
    """The range of Hounsfield units that nnU-Net's normalisation of CT leaves as they are."""
    values = plans["foreground_intensity_properties_per_channel"]["0"]
    return values["percentile_00_5"], values["percentile_99_5"]


def write_image(plans: dict, length: int, edge: int, file: Path) -> None:
    """Writes a CT of `length` slices of edge x edge voxels: an elliptic cylinder of cells in air."""
    rng = np.random.default_rng(0)
    low, high = brightness(plans)
    shape = np.array([length, edge, edge])
    coarse = -(-shape // BLOCK)
    extent_mm = shape * SPACING_XYZ[::-1]
    centres = rng.uniform(0, extent_mm, (max(2, int(extent_mm.prod() / CELL_MM**3)), 3))
    kinds = np.where(rng.random(len(centres)) < 0.4, 0, rng.integers(1, CLASSES, len(centres)))
    places = np.meshgrid(*((np.arange(n) + 0.5) * BLOCK for n in coarse), indexing="ij")
    where_mm = np.stack(places, -1) * SPACING_XYZ[::-1]
    kind = kinds[cKDTree(centres).query(where_mm)[1]]
    kind[(((where_mm / extent_mm - 0.5)[..., 1:] / (0.35, 0.45)) ** 2).sum(-1) > 1] = 0
    units = np.round(low + kind * ((high - low) / (CLASSES - 1))).astype(np.int16)
    for axis, n in enumerate(shape):
        units = units.repeat(BLOCK, axis)[(slice(None),) * axis + (slice(n),)]
    image = sitk.GetImageFromArray(units)
    image.SetSpacing(SPACING_XYZ)
    with atomic_write(file) as part:
        sitk.WriteImage(image, str(part), useCompression=True, compressionLevel=1)


def predict(model: Path, file: Path, out: Path) -> None:
    """Predicts a file with stunet's own pipeline, in which the stand-in takes the network's place."""
    predictor = Predictor(model, Options(mirroring=False))
    values = predictor.model.plan.intensities["0"]
    network = StandIn(*((units - values["mean"]) / values["std"] for units in brightness(predictor.model.plan.content)))
    predictor._windows.network = ReadyNetwork(network, [], torch.device("cpu"))
    out.mkdir(parents=True, exist_ok=True)
    for outcome in Pipeline(predictor, out).run(find_cases(file, predictor.model)):
        if outcome.error:
            raise outcome.error
        segmentation = sitk.GetArrayFromImage(sitk.ReadImage(str(outcome.file)))
        print(f"{len(np.unique(segmentation))} classes, {100 * (segmentation > 0).mean():.0f} % is foreground")
        print(json.dumps(outcome.report.seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    image, prediction = commands.add_parser("image"), commands.add_parser("predict")
    image.add_argument("plans", type=Path)
    image.add_argument("length", type=int)
    image.add_argument("edge", type=int)
    image.add_argument("file", type=Path)
    for name in ("model", "file", "out"):
        prediction.add_argument(name, type=Path)
    args = parser.parse_args()
    if args.command == "image":
        write_image(read_json(args.plans), args.length, args.edge, args.file)
    else:
        predict(args.model, args.file, args.out)


if __name__ == "__main__":
    main()
