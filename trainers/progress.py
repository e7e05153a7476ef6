"""The interface through which trainers report progress to whatever shows it. Trainers know only these methods."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from stunet.trainers.trainer import BaseTrainer
    from stunet.weights.report import JointReport, TransferReport


class TrainingListener(Protocol):
    """Receives progress reports; given to a trainer by whatever shows the progress."""

    def loaded(self, report: "TransferReport | JointReport") -> None:
        """Handle that pre-trained weights have been put into the network."""

    def trains(self, text: str) -> None:
        """Handle a message about what is trained from now on."""

    def warning(self, text: str) -> None:
        """Handle a warning; the training continues."""

    def step(self, trainer: "BaseTrainer", phase: str, done: int, loss: float) -> None:
        """Handle that `done` iterations of the epoch's phase ("train" or "validation") are finished."""

    def epoch(self, trainer: "BaseTrainer") -> None:
        """Handle that an epoch is finished and logged; `trainer.current_epoch` counts it."""

    def case(self, name: str, number: int, count: int) -> None:
        """Handle that the final validation moves on to this case, the `number`-th (from 1) of `count`."""

    def validated(self) -> None:
        """Handle that the final validation has predicted all cases; it measures them next."""


class NullListener:
    """A listener that shows nothing."""

    def loaded(self, report: "TransferReport | JointReport") -> None:
        return

    def trains(self, text: str) -> None:
        return

    def warning(self, text: str) -> None:
        return

    def step(self, trainer: "BaseTrainer", phase: str, done: int, loss: float) -> None:
        return

    def epoch(self, trainer: "BaseTrainer") -> None:
        return

    def case(self, name: str, number: int, count: int) -> None:
        return

    def validated(self) -> None:
        return
