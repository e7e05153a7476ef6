"""Follow trainings in TensorBoard, MLflow or Weights & Biases: `--log tensorboard`. The libraries are extras.

A tracker is one of nnU-Net's loggers, with readable names, and gets pictures of the curves and of the worst validation
cases at the end. One that fails while a training runs is left out from then on. To add one, write a subclass of
Tracker, named in TRACKERS.
"""

import importlib.util
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet.errors import DataError, StunetError, UsageError, closest, last_line
from stunet.files import atomic_write
from stunet.labels.names import name_of_key

if TYPE_CHECKING:
    from stunet.runs.launch import Run

log = logging.getLogger("stunet")
CSV = "csv"  # metrics.csv, which every training has; a pre-training has pretraining.json
NNUNETS_SWITCH, ON = "nnUNet_wandb_enabled", ("1", "True", "true")  # as nnU-Net reads it
TENSORBOARD, MLFLOW, WANDB = FILES = "tensorboard", "mlflow_run.txt", "wandb_run.txt"  # in the fold's folder
NAMES = {
    "train_losses": "loss/training",
    "val_losses": "loss/validation",
    "mean_fg_dice": "Dice on patches/mean",
    "ema_fg_dice": "Dice on patches/moving mean",
    "lrs": "learning rate",
    "final_val/foreground_dice": "Dice of validation/mean",
}
OF_PRETRAINING = {"mean_fg_dice": "measure/held-out subjects", "ema_fg_dice": "measure/moving mean"}
OF_EPOCHS, OF_VALIDATION = "dice_per_class_or_region/class_", "final_val/class_"
TIMES = "epoch_start_timestamps", "epoch_end_timestamps"


class Tracker:
    """One of nnU-Net's loggers (nnunetv2.training.logging), which passes on what a subclass writes.

    Args:
        run: What is trained.
        classes: Names of the classes that epochs count, in their order.
        labels: Those of the model's dataset.json, of which the final validation has the values.
    """

    package = ""  # that has to be installed
    extra = ""  # of stunet that installs it

    def __init__(self, run: "Run", classes: Sequence[str], labels: Mapping[str, Any], epoch: int = 0) -> None:
        self.classes, self.labels, self.epoch = list(classes), labels, epoch
        self._names = {**NAMES, **(OF_PRETRAINING if run.plan.pretext else {})}
        self._begun, self._fails = 0.0, False
        try:
            self.open(run)
            self.update_config(_configuration(run))
        except StunetError:
            raise
        except Exception as error:
            with self.guarded():
                self.close()
            what = f"--log: {type(self).__name__} cannot be reached: {last_line(error)}"
            raise DataError(what, "mend its settings, or leave --log out") from error

    def open(self, run: "Run") -> None:
        """Begin, or go on where an interrupted run was."""

    def update_config(self, config: Mapping[str, Any]) -> None:
        """Note how the run is set."""

    def scalar(self, name: str, value: float, step: int) -> None:
        """Write a value of an epoch."""

    def picture(self, name: str, path: Path) -> None:
        """Write a picture."""

    def close(self) -> None:
        """Write what is left, and end."""

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Warn once of an error, which must not end a training."""
        try:
            yield
        except StunetError:  # such as Interrupted
            raise
        except Exception as error:  # noqa: BLE001 - whatever the library raises
            if not self._fails:
                log.warning("warning: %s is left out from now on: %s", type(self).__name__, last_line(error))
            self._fails = True

    def log(self, key: str, value: Any, step: int) -> None:
        """Write a value of an epoch under a name that people know."""
        if key == TIMES[0]:
            self._begun = value
        elif key == TIMES[1]:
            self._write("seconds of an epoch", value - self._begun, step)
        elif isinstance(value, int | float) or hasattr(value, "item"):
            self._write(self._name(key), float(value), step)

    def log_summary(self, key: str, value: Any) -> None:
        """Write a value of the whole run."""
        if isinstance(value, int | float):
            self._write(self._name(key), float(value), 0)

    def show(self, name: str, path: Path) -> None:
        """Write a picture, unless the tracker has failed."""
        if not self._fails:
            with self.guarded():
                self.picture(name, path)

    def _write(self, name: str, value: float, step: int) -> None:
        if not self._fails:
            with self.guarded():
                self.scalar(name, value, step)

    def _name(self, key: str) -> str:
        if key.startswith(OF_EPOCHS):
            return f"Dice on patches/{self.classes[int(key.removeprefix(OF_EPOCHS)) - 1]}"
        if key.startswith(OF_VALIDATION):  # by value, not by position
            value = key.removeprefix(OF_VALIDATION).removesuffix("_dice")
            return f"Dice of validation/{name_of_key(value, self.labels)}"
        return self._names.get(key, key)


class TensorBoard(Tracker):
    """Files for `tensorboard --logdir`, in the fold's folder."""

    package, extra = "tensorboard", "tensorboard"

    def open(self, run: "Run") -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Epochs after the checkpoint are trained again.
        self._writer = SummaryWriter(str(run.folder / TENSORBOARD), purge_step=self.epoch)

    def update_config(self, config: Mapping[str, Any]) -> None:
        rows = [f"| {key} | {value} |" for key, value in config.items()]
        self._writer.add_text("run", "\n".join(["| | |", "| --- | --- |", *rows]))

    def scalar(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)

    def picture(self, name: str, path: Path) -> None:
        import matplotlib.image

        self._writer.add_image(name, matplotlib.image.imread(path)[..., :3], dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class MLflow(Tracker):
    """A run of the tracking server that MLFLOW_TRACKING_URI names, or of files in ./mlruns."""

    package, extra = "mlflow", "mlflow"

    def open(self, run: "Run") -> None:
        import mlflow

        self._api: Any = mlflow
        known = run.folder / MLFLOW
        self._api.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", run.dataset))
        goes_on = known.is_file() and (run.resume or run.only_validate)
        name = f"{run.plan.name} {run.configuration} fold {run.fold}"
        active = self._api.start_run(run_id=known.read_text() if goes_on else None, run_name=None if goes_on else name)
        with atomic_write(known) as part:
            part.write_text(active.info.run_id)

    def update_config(self, config: Mapping[str, Any]) -> None:
        self._api.set_tags({key: str(value) for key, value in config.items()})

    def scalar(self, name: str, value: float, step: int) -> None:
        kind, slash, own = name.partition("/")
        # MLflow allows letters, digits and -_./ : and takes slashes and dots for folders.
        allowed = "".join(each if each.isalnum() or each in "-_ :" else f"_{ord(each):x}_" for each in own)
        self._api.log_metric(kind + slash + allowed, value, step=step)

    def picture(self, name: str, path: Path) -> None:
        self._api.log_artifact(str(path), "pictures")

    def close(self) -> None:
        self._api.end_run()


class WeightsAndBiases(Tracker):
    """A run of Weights & Biases; nnUNet_wandb_project and nnUNet_wandb_mode count as in nnU-Net."""

    package, extra = "wandb", "wandb"

    def open(self, run: "Run") -> None:
        import wandb

        self._api: Any = wandb
        known, mode = run.folder / WANDB, os.environ.get("nnUNet_wandb_mode", "online")
        identifier = known.read_text() if known.is_file() and (run.resume or run.only_validate) else None
        self._run = self._api.init(
            project=os.environ.get("nnUNet_wandb_project", "nnunet"),
            name=f"{run.dataset} {run.plan.name} {run.configuration} fold {run.fold}",
            dir=str(run.folder),
            mode=mode,
            id=identifier,
            resume="allow",
        )
        with atomic_write(known) as part:
            part.write_text(self._run.id)

    def update_config(self, config: Mapping[str, Any]) -> None:
        self._run.config.update(dict(config), allow_val_change=True)

    def scalar(self, name: str, value: float, step: int) -> None:
        # The epoch as a value of its own: wandb's step only ever grows, and a resumed run repeats epochs.
        self._run.log({name: value, "epoch": step})

    def picture(self, name: str, path: Path) -> None:
        self._run.log({name: self._api.Image(str(path))})

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WeightsAndBiases}


def named(log: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of trackers that are given as one or several."""
    return (log,) if isinstance(log, str) else tuple(log or ())


def check_trackers(names: str | Sequence[str] | None) -> None:
    """Check that what a run logs to is there.

    Raises:
        UsageError: There is no such tracker, or nnU-Net's variable has another value than 0 and 1.
        DataError: Its library is not installed.
    """
    names = named(names)
    for name in names:
        if name not in TRACKERS and name != CSV:
            raise UsageError(
                f"--log {name!r}{closest(name, [*TRACKERS, CSV])}", f"one of {', '.join([*TRACKERS, CSV])}"
            )
    switch = os.environ.get(NNUNETS_SWITCH, "0")
    if switch not in ("0", "False", "false", *ON):
        raise UsageError(f"{NNUNETS_SWITCH} is {switch!r}, neither 0 nor 1", f"export {NNUNETS_SWITCH}=0")
    asked = {f"--log {name}": TRACKERS[name] for name in names if name in TRACKERS}
    if switch in ON:
        if "wandb" in names:
            raise UsageError(f"--log wandb, and {NNUNETS_SWITCH} asks for it as well", "one of them")
        asked[f"{NNUNETS_SWITCH}={switch}"] = WeightsAndBiases
    for how, tracker in asked.items():
        if importlib.util.find_spec(tracker.package) is None:
            raise DataError(f"{how}: {tracker.package} is not installed", f"pip install 'stunet[{tracker.extra}]'")


@contextmanager
def tracked(run: "Run", trainer: Any) -> Iterator[None]:
    """Let the trackers of a run hear what its trainer logs, in the process that leads it; then show them the curves."""
    made: list[Tracker] = []
    try:
        for name in run.log if trainer.local_rank == 0 else ():
            if name in TRACKERS:
                classes = () if run.plan.pretext else trainer.class_names()
                made.append(TRACKERS[name](run, classes, trainer.dataset_json["labels"], trainer.current_epoch))
        trainer.logger.loggers.extend(made)
        yield
        if made:
            _show(run.folder, made)
    finally:
        for tracker in made:
            with tracker.guarded():
                tracker.close()


def _show(folder: Path, trackers: Sequence[Tracker]) -> None:
    """Show the curves, and the worst cases of the final validation; what fails must not end a training that is done."""
    from stunet.report.runs import Fold
    from stunet.report.training import worst_pictures

    try:
        with tempfile.TemporaryDirectory(prefix="stunet-") as scratch:
            pictures = {"progress": folder / "progress.png"}
            for position, (case, content) in enumerate(worst_pictures(Fold(folder))):
                pictures[f"worst cases/{case}"] = path = Path(scratch, f"{position}.png")
                path.write_bytes(content)
            for tracker in trackers:
                for name, path in pictures.items():
                    if path.is_file():
                        tracker.show(name, path)
    except StunetError:  # such as Interrupted
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is: the training is worth more than its pictures
        log.warning("warning: --log: pictures are left out: %s", last_line(error))


def _configuration(run: "Run") -> dict[str, Any]:
    """Return how a run is set, in few words."""
    planned = run.plan.configuration(run.configuration)
    return {
        "dataset": run.dataset,
        "plans": run.plan.name,
        "configuration": run.configuration,
        "fold": run.fold,
        "trainer": run.trainer,
        "device": run.device,
        "patch": "x".join(map(str, planned.patch_size)),
        "batch": planned.batch_size,
        **{key: value for key, value in vars(run.plan.train).items() if value is not None},
    }
