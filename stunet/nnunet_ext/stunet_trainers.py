"""Shows our trainers to nnU-Net's folder scan without a second copy of their classes."""

from stunet.trainers.partial.trainer import STUNetPartialTrainer
from stunet.trainers.supervised import STUNetTrainer

__all__ = ["STUNetPartialTrainer", "STUNetTrainer"]
