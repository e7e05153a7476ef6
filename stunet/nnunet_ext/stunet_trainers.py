"""Shows our trainers to nnU-Net's folder scan without a second copy of their classes."""

from stunet.trainers.supervised import STUNetTrainer

__all__ = ["STUNetTrainer"]
