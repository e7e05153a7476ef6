"""Who is told how training goes: whatever shows progress. Trainers know only these methods."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from stunet.trainers.base import PlannedTrainer
    from stunet.weights.report import TransferReport


class Listener(Protocol):
    """Is told how training goes; given to a trainer by whoever shows progress."""

    def loaded(self, report: "TransferReport") -> None:
        """Pre-trained weights have been put into the network."""

    def trains(self, text: str) -> None:
        """From now on another part of the network is trained."""

    def step(self, trainer: "PlannedTrainer", phase: str, done: int, loss: float) -> None:
        """`done` iterations of the epoch's phase ("train" or "validation") are over."""

    def epoch(self, trainer: "PlannedTrainer") -> None:
        """An epoch is over and logged; `trainer.current_epoch` counts it."""

    def case(self, name: str) -> None:
        """The final validation goes on to this case."""


class Silent:
    """A listener that shows nothing."""

    def loaded(self, report: "TransferReport") -> None:
        return

    def trains(self, text: str) -> None:
        return

    def step(self, trainer: "PlannedTrainer", phase: str, done: int, loss: float) -> None:
        return

    def epoch(self, trainer: "PlannedTrainer") -> None:
        return

    def case(self, name: str) -> None:
        return
