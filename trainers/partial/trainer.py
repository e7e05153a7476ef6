"""Train one network on cases that annotate different classes.

annotations.json (stunet/labels/annotations.py) records what each case annotates; the leaves that a case does not
annotate are part of its background. The network has one output per leaf, and the resulting model is an ordinary nnU-Net
model. The differences from complete labels: the loss, which takes tables of what each case annotates (tables.py), how
often a case is drawn (drawing.py), and that a class is evaluated in the cases that annotate it (validation.py).
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stunet.errors import DataError, WeightsError, first_few
from stunet.files import atomic_write, json_differences
from stunet.labels.annotations import FILE, Annotations, load_training_annotations
from stunet.labels.names import Sides, sides
from stunet.losses import DiceAndEntropy, MaskedSigmoid, PartitionDiceCE
from stunet.plans.plan import Plan
from stunet.preprocessing.dataset import preprocessed_cases
from stunet.trainers.partial.drawing import FEW, case_probabilities, expected_samples
from stunet.trainers.partial.tables import CaseTables, count_annotated, count_groups
from stunet.trainers.partial.validation import measure
from stunet.trainers.supervised import STUNetTrainer
from stunet.workspace import preprocessed_dataset

LABELS = "labels.toml"  # in the model's folder: the argument for --labels of stunet_predict


class STUNetPartialTrainer(STUNetTrainer):
    """Trains on a dataset with annotations, or with the full head of a network that has more classes than the data."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int | str,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net reads this signature and passes it on
    ) -> None:
        # Before nnU-Net's constructor, whose label manager is made from what the annotations say of the model.
        self.annotations = _annotations(Plan(plans), configuration, dataset_json)
        self.labels_of_dataset = dataset_json["labels"]
        super().__init__(plans, configuration, fold, self.annotations.model_description(dataset_json), device)
        self.training_cases: list[str] = []
        self._tables = CaseTables(self.annotations)
        self.value_count = max(self.annotations.values.values()) + 1
        self.ignore_value = self.value_count if self.label_manager.has_ignore_label else None  # in label files

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return the split as in every training.

        Raises:
            DataError: One of the cases is missing from the annotations.
        """
        train, validation = super().do_split()
        unknown = sorted({*train, *validation} - self.annotations.cases.keys())
        if unknown:
            raise DataError(
                f"{FILE} does not say what {len(unknown)} cases annotate (e.g. {unknown[0]!r})",
                "build the dataset again: stunet_merge build, then stunet_plan_and_preprocess",
            )
        self.training_cases = [str(case) for case in train]
        return train, validation

    def case_weights(self, cases: Sequence[str]) -> Sequence[float]:
        """Return probabilities that balance the sources: see drawing.py."""
        return case_probabilities(self.annotations, cases).tolist()

    def annotated_values(self) -> Sequence[int]:
        """Return the values of label files, which are not those of the network's classes."""
        return range(self.value_count)

    # Targets keep the values of label files, because the loss takes these: they are not converted to regions.

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        return super().get_training_transforms(*args, **{**kwargs, "regions": None})

    def get_validation_transforms(self, *args: Any, **kwargs: Any) -> Any:
        return super().get_validation_transforms(*args, **{**kwargs, "regions": None})

    def sides(self) -> Sides:
        """Return the sides of the dataset's labels: a network may have more classes than the dataset."""
        return sides(self.labels_of_dataset)

    def label_space(self) -> Annotations:
        return self.annotations

    def criterion(self) -> DiceAndEntropy:
        """Return the loss over what each sample annotates."""
        # The label manager's ignore label is a value of the model, but targets hold those of label files.
        options = self.configuration_manager.batch_dice, self.ignore_value
        if self.label_manager.has_regions:
            return MaskedSigmoid(*options, ddp=self.is_ddp)
        return PartitionDiceCE(self.value_count, *options, ddp=self.is_ddp)

    def tables(self, batch: dict) -> tuple[torch.Tensor, ...]:
        """Return what the cases of a batch annotate: groups (B, C), or for a sigmoid head two tables of regions."""
        return self._tables.look_up(batch["keys"])

    def count(self, logits: torch.Tensor, target: torch.Tensor, *tables: torch.Tensor) -> torch.Tensor:
        """Count per label by value, or per region of a sigmoid head, in the samples that annotate it."""
        here, ignore = [table.to(logits.device) for table in tables], self.ignore_value
        if self.label_manager.has_regions:
            return count_annotated(logits, target, *here, ignore=ignore)
        return count_groups(logits, target, *here, values=self.value_count, ignore=ignore)

    def class_names(self) -> list[str]:
        """Return the outputs of a sigmoid head, or the labels of the label files by value."""
        if self.label_manager.has_regions:
            return list(self.annotations.outputs)
        names = {value: label for label, value in self.annotations.values.items()}
        return [names.get(value, str(value)) for value in range(1, self.value_count)]

    def on_train_start(self) -> None:
        """Report how often each label will be seen; write labels.toml if the dataset's labels are not the network's."""
        super().on_train_start()
        if self.annotations.numbers is not None and self.local_rank == 0:
            self._write_labels(Path(self.output_folder_base) / LABELS)
        cases = self.training_cases
        samples = self.num_iterations_per_epoch * self.configuration_manager.batch_size
        found = expected_samples(self.annotations, cases, samples)
        listed = ", ".join(f"{label} {count:.4g}" for label, count in found.items())
        self.print_to_log_file(f"expected samples per epoch that annotate a label, of {samples}: {listed}")
        few = {label: count for label, count in found.items() if count < FEW}
        if few and self.local_rank == 0:
            listed = ", ".join(f"{label} {count:.2g}" for label, count in few.items())
            self.listener.warning(f"fewer than {FEW:g} samples per epoch annotate {listed}")

    def _write_labels(self, path: Path) -> None:
        """Write a label system (stunet/labels/systems.py) for predictions in the dataset's labels."""
        leaves = {value: self.annotations.labels[label] for label, value in (self.annotations.numbers or {}).items()}
        lines = [
            f"{json.dumps(name)} = {{ labels = [{value}], from = {json.dumps(list(leaves[value]))} }}"
            for name, value in self.labels_of_dataset.items()
            if value in leaves
        ]
        title = f"title = {json.dumps(self.plans_manager.dataset_name)}"
        with atomic_write(path) as part:
            part.write_text("\n".join([title, "[classes]", *lines, ""]))

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Evaluate as nnU-Net does; a label that no sample has is NaN, without a warning: with many it is usual."""
        with np.errstate(invalid="ignore"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
            super().on_validation_epoch_end(val_outputs)

    def measure_validation(self, processes: int) -> None:
        measure(self)

    def more_state(self) -> dict[str, Any]:
        return {**super().more_state(), "annotations": self.annotations.to_json()}

    def load_network_state(self, weights: dict[str, torch.Tensor], more: dict[str, Any]) -> None:
        """Load as in every training.

        Raises:
            WeightsError: The checkpoint was trained with other classes, or other annotations of the cases.
        """
        if changed := json_differences(more.get("annotations"), self.annotations.to_json(), "annotations"):
            raise WeightsError(
                f"the checkpoint was trained with other annotations than today's ({first_few(changed)})",
                "--overwrite starts from scratch",
            )
        super().load_network_state(weights, more)


def _annotations(plan: Plan, configuration: str, dataset_json: dict) -> Annotations:
    dataset = plan.dataset_name
    cases = preprocessed_cases(dataset, plan, configuration)
    annotations = load_training_annotations(preprocessed_dataset(dataset), plan.reused_classes, dataset_json, cases)
    if annotations is None:
        raise DataError(
            f"{dataset} has no {FILE}, so every case annotates every class", "-tr STUNetTrainer, or stunet_merge build"
        )
    return annotations
