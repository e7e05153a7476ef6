"""From a pre-training without labels to a fine-tuning: the folder and the files that one leaves start the other."""

from pathlib import Path

import pytest
import torch

from stunet import workspace
from stunet.architectures.stunet import STUNET
from stunet.errors import WeightsError
from stunet.files import read_json
from stunet.inference.model import open_model
from stunet.plans.derive import derive
from stunet.plans.files import plan_path, read_plan
from stunet.plans.plan import Plan
from stunet.trainers.finetune.start import Start, choose_heads, plan_entry, preview
from stunet.weights.nnssl import check_written, write_nnssl
from stunet.weights.reading import read_weights
from tests.loops import for_each
from tests.pretraining_run import make_pretrainer


@for_each(("method", "transfers"), [("rot", "encoder"), ("mae", "encoder"), ("fusion", "all")])
def test_the_folder_of_a_pretraining_and_its_file_for_nnssl_are_pretrained_weights(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, transfers: str
) -> None:
    trainer = make_pretrainer(planned, tmp_path, monkeypatch, method, num_epochs=1, num_iterations_per_epoch=1)
    trainer.run_training()
    folder, state = Path(trainer.output_folder), trainer.bare_network().state_dict()
    file = folder / "pretrained.pth"
    names = list(trainer.dataset_json["channel_names"].values())
    write_nnssl(file, state, trainer.plan, trainer.configuration_name, names, method, transfers=transfers)
    check_written(file, state)
    dataset_json = read_json(workspace.preprocessed_dataset(planned) / "dataset.json")
    plan = read_plan(plan_path(planned, "STUNetPlans_T"))
    for path in (folder.parent, file):
        weights = read_weights(path)
        assert (weights.pretext, weights.transfers, weights.classes, weights.channels) == (
            method,
            transfers,
            None,
            names,
        )
        planned_as = plan.configuration("3d_fullres")
        assert (weights.strides, weights.spacing) == (planned_as.strides, planned_as.spacing)
        assert all(torch.equal(value, state[name].cpu()) for name, value in weights.tensors.items())
        report = preview_of(path, plan, dataset_json)
        assert report[0].endswith(f"-{method}")
        assert report[1] == (transfers == "all")
    with pytest.raises(WeightsError, match=f"pre-trained by '{method}' without labels"):
        open_model(folder.parent)


def preview_of(path: Path, plan: Plan, dataset_json: dict) -> tuple[str, bool]:
    """Return the name of the plans of a fine-tuning, and whether it starts with the decoder of the weights."""
    start = Start(path)
    named = plan_entry(start, choose_heads(start, None, dataset_json), is_file=True)
    derived = derive(plan, dataset_json, finetune="ramp", weights=[named])
    report = preview(start, derived, "3d_fullres", dataset_json)
    assert (report.coverage, report.warnings) == (1, ())
    decoder = [
        f for f in report.tensors if f.target and not STUNET.is_encoder(f.target) and "seg_outputs" not in f.target
    ]
    assert len({f.kind for f in decoder}) == 1
    return derived.name, decoder[0].kind == "copied"
