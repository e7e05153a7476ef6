"""Find the weights in a folder, whichever of the known layouts it has. Does not import torch.

    DATASET/TRAINER__PLANS__CONFIGURATION/plans.json, dataset.json, fold_0/checkpoint_final.pth   nnU-Net v2
    adaptation_plan.json, config.json, checkpoint_final.pth or X.safetensors                      nnssl, Hugging Face

The folder of a dataset stands for the one model in it (TotalSegmentator installs its tasks so), a folder of several for
none of them. reading.py reads what is found.
"""

from pathlib import Path

from stunet.errors import WeightsError

ADAPTATION_FILE = "adaptation_plan.json"  # nnssl's plan for adapting a pre-trained network, beside its checkpoint
_FINISHED, _BEST = "checkpoint_final.pth", "checkpoint_best.pth"
_ENDINGS = (".pth", ".pt", ".safetensors", ".model", ".bin")


def checkpoint_in(folder: Path) -> Path:
    """Return the weights that a folder stands for: of its lowest fold, else of fold_all, or its only file of weights.

    Raises:
        WeightsError: It has no finished weights, or several models.
    """
    folder = model_folder(folder)
    if found := _published(folder):
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise WeightsError(f"{str(folder)!r} has {len(found)} files of weights: {names}", "give one of them")
        return found[0]
    folds = _folds(folder)
    lacking = [name for name in ("plans.json", "dataset.json") if not (folder / name).is_file()]
    # Without both, the checkpoint itself has to say what it means, as MultiTalent's do.
    if lacking and not (folds and len(lacking) == 2):
        raise WeightsError(
            f"{str(folder)!r} is not a model folder: it has no {lacking[0]}",
            "give DATASET/TRAINER__PLANS__CONFIGURATION, or a file of weights",
        )
    if not folds:
        raise WeightsError(
            f"no fold of {str(folder)!r} has a checkpoint_final.pth", "give the folder of a finished training"
        )
    return folds[0]


def model_folder(path: Path) -> Path:
    """Return the model folder that a path stands for: the only one below the folder of a dataset, or the path itself.

    Raises:
        WeightsError: There are several.
    """
    models = models_below(path)
    if len(models) > 1:
        listed = ", ".join(str(model.relative_to(path)) for model in models[:3]) + (", ..." if models[3:] else "")
        raise WeightsError(f"{str(path)!r} holds {len(models)} models: {listed}", "give the folder of one of them")
    return models[0] if models else path


def models_below(path: Path) -> list[Path]:
    """Return the model folders one or two levels below a folder that is none itself, sorted."""
    if not path.is_dir() or (path / "plans.json").is_file():
        return []
    found = [plans.parent for level in ("*__*__*", "*/*__*__*") for plans in path.glob(f"{level}/plans.json")]
    return sorted(found)


def _published(folder: Path) -> list[Path]:
    """Return the files of weights directly in a folder, as Hugging Face has them; of these, checkpoint_final.pth."""
    if (folder / "plans.json").is_file():
        return []
    files = sorted(path for path in folder.iterdir() if path.suffix in _ENDINGS and path.is_file())
    return [path for path in files if path.name == _FINISHED] or files


def _folds(folder: Path) -> list[Path]:
    for name in (_FINISHED, _BEST):
        # fold_all after the numbered folds, and fold_10 after fold_2.
        found = sorted(folder.glob(f"fold_*/{name}"), key=lambda path: (len(path.parent.name), path))
        if found:
            return found
    return []
