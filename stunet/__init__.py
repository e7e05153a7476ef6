"""STU-Net on nnU-Net v2: plan, train, pre-train, predict and evaluate scalable 3D segmentation networks.

    import stunet

    result = stunet.train(3, pretrained="STU-Net-B", set={"num_epochs": 100})

docs/python.md has a whole example; runs/api.py the functions. They are imported when they are first used.
Read next: networks.py (the network), plans/ (what a run looks like), trainers/ (how it is trained), runs/ (use cases).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stunet.inference.features.model import Model
    from stunet.inference.predictor import Predictor
    from stunet.runs.api import evaluate, features, plan, predict, pretrain, rank, train
    from stunet.runs.evaluation import EvaluationRequest, EvaluationResult
    from stunet.runs.features import FeaturesRequest, FeaturesResult
    from stunet.runs.listener import Listener
    from stunet.runs.planning import PlanningResult
    from stunet.runs.planning_request import PlanningRequest
    from stunet.runs.prediction import PredictionRequest, PredictionResult
    from stunet.runs.pretraining import PretrainingRequest, PretrainingResult
    from stunet.runs.ranking import RankingRequest, RankingResult
    from stunet.runs.training import TrainingRequest, TrainingResult

__version__ = "0.1.0"
__all__ = [
    "EvaluationRequest",
    "EvaluationResult",
    "FeaturesRequest",
    "FeaturesResult",
    "Listener",
    "Model",
    "PlanningRequest",
    "PlanningResult",
    "PredictionRequest",
    "PredictionResult",
    "Predictor",
    "PretrainingRequest",
    "PretrainingResult",
    "RankingRequest",
    "RankingResult",
    "TrainingRequest",
    "TrainingResult",
    "evaluate",
    "features",
    "plan",
    "predict",
    "pretrain",
    "rank",
    "train",
]

_MODULES = {
    "EvaluationRequest": "stunet.runs.evaluation",
    "EvaluationResult": "stunet.runs.evaluation",
    "FeaturesRequest": "stunet.runs.features",
    "FeaturesResult": "stunet.runs.features",
    "Listener": "stunet.runs.listener",
    "Model": "stunet.inference.features.model",
    "PlanningRequest": "stunet.runs.planning_request",
    "PlanningResult": "stunet.runs.planning",
    "PredictionRequest": "stunet.runs.prediction",
    "PredictionResult": "stunet.runs.prediction",
    "Predictor": "stunet.inference.predictor",
    "PretrainingRequest": "stunet.runs.pretraining",
    "PretrainingResult": "stunet.runs.pretraining",
    "RankingRequest": "stunet.runs.ranking",
    "RankingResult": "stunet.runs.ranking",
    "TrainingRequest": "stunet.runs.training",
    "TrainingResult": "stunet.runs.training",
    "evaluate": "stunet.runs.api",
    "features": "stunet.runs.api",
    "plan": "stunet.runs.api",
    "predict": "stunet.runs.api",
    "pretrain": "stunet.runs.api",
    "rank": "stunet.runs.api",
    "train": "stunet.runs.api",
}


def __getattr__(name: str) -> Any:
    """Import a part of the Python API when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'stunet' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
