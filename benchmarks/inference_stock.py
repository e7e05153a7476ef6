"""What does nnU-Net's export alone cost? Its own function, in a process of its own, on logits that were saved before.

    python benchmarks/inference_stock.py logits MODEL IMAGE FOLDER
    python benchmarks/inference_stock.py export MODEL FOLDER

The first predicts with nnU-Net's predictor and saves what it hands to its export worker; the second does what that
worker does before it writes a file, and prints the seconds as JSON. inference.py runs both.
"""

import argparse
import json
import pickle
import time
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape as convert
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from stunet.files import atomic_write, read_json

CONFIGURATION = "3d_fullres"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, names in (("logits", ("model", "image", "folder")), ("export", ("model", "folder"))):
        sub = commands.add_parser(command)
        for name in names:
            sub.add_argument(name, type=Path)
    args = parser.parse_args()
    if args.command == "logits":
        print(save_logits(args.model, args.image, args.folder))
    else:
        print(json.dumps(export(args.model, args.folder)))


def save_logits(model: Path, image: Path, folder: Path) -> str:
    """Predicts an image without mirroring, and saves its logits in float16 and its properties; says what they are."""
    predictor = load(model)
    image_CDHW, properties = preprocess(predictor, image)
    logits = predictor.predict_logits_from_preprocessed_data(image_CDHW)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "properties.pkl").write_bytes(pickle.dumps(properties))
    with atomic_write(folder / "logits.npy") as part, part.open("wb") as file:
        np.save(file, logits.numpy())
    return describe(logits)


def load(model: Path) -> nnUNetPredictor:
    """nnU-Net's predictor on the CPU, without mirroring, with the only fold of a model."""
    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    (fold,) = (path.name.removeprefix("fold_") for path in model.glob("fold_*"))
    predictor.initialize_from_trained_model_folder(str(model), [fold])
    return predictor


def preprocess(predictor: nnUNetPredictor, image: Path) -> tuple[torch.Tensor, dict]:
    """An image (C, D, H, W) on the model's grid, and what the way back needs."""
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    array_CDHW, _, properties = preprocessor.run_case(
        [str(image)], None, predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    )
    return torch.from_numpy(array_CDHW), properties


def describe(logits_KDHW: torch.Tensor) -> str:
    """Whether logits look like a network's: how many classes win somewhere, and by how much they do."""
    best, second = logits_KDHW.float().topk(2, dim=0).values
    winners = logits_KDHW.argmax(0)
    margins = (best - second).flatten()[:: max(1, best.numel() // 1_000_000)]
    low, middle = margins.quantile(torch.tensor([0.05, 0.5])).tolist()
    return (
        f"logits {tuple(logits_KDHW.shape)}: {len(winners.unique())} classes win, "
        f"{100 * float((winners > 0).float().mean()):.0f} % is foreground, "
        f"margin to the second class: median {middle:.2f}, 5 % are below {low:.2f}"
    )


def export(model: Path, folder: Path) -> dict[str, float]:
    """Makes saved logits a segmentation on the image's grid; seconds of wall and CPU time, without reading them."""
    plans = PlansManager(read_json(model / "plans.json"))
    labels = plans.get_label_manager(read_json(model / "dataset.json"))
    properties = pickle.loads((folder / "properties.pkl").read_bytes())
    logits = np.load(folder / "logits.npy")
    wall, cpu = time.perf_counter(), time.process_time()
    convert(logits, plans, plans.get_configuration(CONFIGURATION), labels, properties)
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


if __name__ == "__main__":
    main()
