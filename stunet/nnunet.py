"""Every name in nnU-Net that this package patches or relies on, with the reason, and a check that it still exists.

nnU-Net promises no stable interface below its commands. Names that a new version moves or removes are reported in one
error before a command starts work. To use another name of nnU-Net, add it to NAMES; a test compares the table with the
code. A name that is only read can change its meaning unnoticed: the tests that compare with stock nnU-Net find that.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from stunet.errors import DataError
from stunet.files import atomic_write
from stunet.source_lookup import class_members, has_name, has_string

TESTED = "2.8.1"  # the version of constraints.txt
OLDEST = (2, 8)  # the first one that looks for trainers in nnUNet_extTrainer
SHOWN = 3  # missing names in an error message


@dataclass(frozen=True)
class Names:
    """Names in nnU-Net that are used for one reason.

    Args:
        place: A module below nnunetv2, or a class in it as `module:Class`, which is then used as well.
        names: Separated by spaces: what the module defines or imports, or the members of the class.
        used_by: The parts of this package that use them, separated by spaces.
        reason: Why we use them, or why we replace them.
    """

    place: str
    names: str
    used_by: str
    reason: str

    @property
    def module(self) -> str:
        """Dotted name of the module."""
        return f"nnunetv2.{self.place.partition(':')[0]}"

    @property
    def owner(self) -> str:
        """Name of the class; empty for names of the module itself."""
        return self.place.partition(":")[2]

    def absent(self) -> list[str]:
        """Return the names that the installed nnU-Net lacks."""
        if self.owner:
            known = class_members(self.module, self.owner)
            return [name for name in self.names.split() if name not in known]
        return [name for name in self.names.split() if not has_name(self.module, name)]


class Patched(Names):
    """Names of a module that are replaced with ours, by patch() or patched()."""


class Strings(Names):
    """Strings in the code of a module: files, keys and environment variables that we share with nnU-Net."""

    def absent(self) -> list[str]:
        """Return the strings that the module does not contain."""
        return [name for name in self.names.split() if not has_string(self.module, name)]


_TRAINER = "training.nnUNetTrainer.nnUNetTrainer"
_FINGERPRINT = "experiment_planning.dataset_fingerprint.fingerprint_extractor"
_PLANNER = "experiment_planning.experiment_planners.default_experiment_planner"
_PREPROCESSOR = "preprocessing.preprocessors.default_preprocessor"
_DATASET = "training.dataloading.nnunet_dataset"
_PLANS = "utilities.plans_handling.plans_handler"
_ATOMIC = "write files atomically: any command may be killed"

# fmt: off
NAMES: tuple[Names, ...] = (
    # Planning
    Patched(_FINGERPRINT, "save_json", "plans", _ATOMIC),
    Patched(_FINGERPRINT, "multiprocessing", "plans",
            "when a process is killed, its pool hangs or does not name the case"),
    Patched(_FINGERPRINT, "determine_reader_writer_from_dataset_json", "plans",
            "it tries all readers, printing a traceback for each that fails; ours also turns the images"),
    Patched(_FINGERPRINT, "get_filenames_of_train_images_and_targets", "plans",
            "takes a label for granted, starts 12 processes to list a folder, and lists hidden files"),
    Names(f"{_FINGERPRINT}:DatasetFingerprintExtractor", "analyze_case dataset dataset_json run show_progress_bar",
          "plans", "computes the statistics of a dataset"),
    Patched(_PLANNER, "save_json shutil", "plans", _ATOMIC),
    Patched(_PLANNER, "get_filenames_of_train_images_and_targets", "plans", "as for the fingerprint"),
    Names(f"{_PLANNER}:ExperimentPlanner",
          "determine_reader_writer generate_data_identifier plan_experiment determine_transpose "
          "determine_normalization_scheme_and_whether_mask_is_used_for_norm get_plans_for_configuration "
          "determine_resampling determine_segmentation_softmax_export_fn static_estimate_VRAM_usage save_plans",
          "plans", "overridden: patch, batch, strides and normalisation are ours"),
    Names(f"{_PLANNER}:ExperimentPlanner",
          "dataset dataset_fingerprint dataset_json dataset_name plans_identifier "
          "overwrite_target_spacing determine_fullres_target_spacing lowres_creation_threshold",
          "plans", "what is planned, and its spacing, which is nnU-Net's"),
    Names("experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners",
          "nnUNetPlannerResEncM nnUNetPlannerResEncL nnUNetPlannerResEncXL", "plans", "nnU-Net's own planners (-pl)"),
    Names("paths", "nnUNet_preprocessed", "plans", "where nnU-Net writes plans"),
    Names("utilities.json_export", "recursive_fix_for_json_export", "plans", "converts numpy's numbers to plain ones"),
    Names("training.loss.compound_losses", "DC_and_BCE_loss", "plans", "--probe measures a step with regions"),
    Names("training.loss.dice", "MemoryEfficientSoftDiceLoss", "plans", "--probe measures a step with regions"),
    Names(f"{_PLANS}:PlansManager",
          "plans dataset_name get_configuration get_label_manager transpose_forward transpose_backward "
          "foreground_intensity_properties_per_channel",
          "inference preprocessing trainers", "what a plan contains"),
    Names(f"{_PLANS}:PlansManager", "image_reader_writer_class", "preprocessing",
          "overridden: images are read in the orientation of the plan"),
    Names(f"{_PLANS}:ConfigurationManager",
          "batch_dice batch_size configuration data_identifier network_arch_class_name network_arch_init_kwargs "
          "network_arch_init_kwargs_req_import next_stage_names normalization_schemes patch_size pool_op_kernel_sizes "
          "preprocessor_class preprocessor_name previous_stage_name resampling_fn_probabilities spacing "
          "use_mask_for_norm",
          "inference preprocessing trainers", "what a configuration of a plan contains"),
    Strings(_PLANS,
            "configurations dataset_name plans_name image_reader_writer experiment_planner_used "
            "original_median_spacing_after_transp transpose_forward "
            "foreground_intensity_properties_per_channel inherits_from data_identifier preprocessor_name batch_size "
            "patch_size spacing median_image_size_in_voxels normalization_schemes use_mask_for_norm previous_stage "
            "next_stage architecture network_class_name arch_kwargs _kw_requires_import strides pool_op_kernel_sizes "
            "resampling_fn_probabilities resampling_fn_probabilities_kwargs "
            "UNet_class_name UNet_base_num_features unet_max_num_features conv_kernel_sizes num_pool_per_axis "
            "n_conv_per_stage_encoder n_conv_per_stage_decoder",
            "plans inference", "keys of plans"),
    Names("utilities.label_handling.label_handling:LabelManager",
          "all_labels foreground_labels foreground_regions has_ignore_label has_regions ignore_label "
          "num_segmentation_heads regions_class_order",
          "inference preprocessing trainers", "what the labels of dataset.json mean"),
    Names("utilities.label_handling.label_handling", "determine_num_input_channels", "inference",
          "channels of a network, with those of a previous stage"),
    Names("utilities.label_handling.label_handling", "convert_labelmap_to_one_hot", "inference trainers",
          "the previous stage's labels, as the network of a cascade takes them"),
    Names("utilities.utils", "get_filenames_of_train_images_and_targets", "inference",
          "the files of each case of a raw dataset"),
    Names("imageio.reader_writer_registry", "determine_reader_writer_from_dataset_json", "datasets",
          "the reader of a dataset"),
    Names("imageio.reader_writer_registry", "recursive_find_reader_writer_by_name", "datasets images merging",
          "the reader that a plan or dataset.json names"),

    # Preprocessing
    Names("configuration", "ANISO_THRESHOLD", "inference preprocessing", "default of the resampling functions"),
    Names("preprocessing.cropping.cropping", "bounding_box_to_slice crop_to_nonzero get_bbox_from_mask",
          "preprocessing", "crops to the nonzero region"),
    Names("preprocessing.resampling.default_resampling", "compute_new_shape", "inference preprocessing",
          "the shape at another spacing, rounded as in nnU-Net"),
    Names("preprocessing.resampling.default_resampling", "determine_do_sep_z_and_axis", "inference preprocessing",
          "whether the slices are resampled separately"),
    Names("preprocessing.resampling.default_resampling", "resample_data_or_seg_to_shape", "preprocessing",
          "recognises plans that our own resampling can execute"),
    Names(f"{_PREPROCESSOR}:DefaultPreprocessor", "run_case run_case_npy", "preprocessing",
          "overridden: the steps of a case, in the memory of two copies"),
    Names(f"{_PREPROCESSOR}:DefaultPreprocessor",
          "_normalize _sample_foreground_locations modify_seg_fn run_case_save verbose", "preprocessing",
          "the steps that are nnU-Net's; v1_preprocessing.py overrides _normalize"),

    Names("preprocessing.resampling.no_resampling", "no_resampling_hack", "plans preprocessing",
          "images that keep their own spacing"),

    # Preprocessed cases
    Patched(_DATASET, "load_pickle", "preprocessing", "a .pkl file can contain code: read only plain values"),
    Names(_DATASET, "infer_dataset_class", "inference preprocessing trainers",
          "the format of a folder of preprocessed cases"),
    Names(_DATASET, "nnUNetBaseDataset", "inference", "type of a dataset"),
    Names(_DATASET, "comp_blosc2_params file_ending_dataset_mapping nnUNetDatasetBlosc2", "trainers",
          "writes the labels that the next stage of a cascade takes"),
    Names(f"{_DATASET}:nnUNetDatasetBlosc2", "load_case source_folder folder_with_segs_from_previous_stage",
          "preprocessing", "reads a preprocessed case"),
    Names(f"{_DATASET}:nnUNetDatasetBlosc2", "identifiers", "inference", "names of the cases"),
    Names(f"{_DATASET}:nnUNetDatasetBlosc2", "save_seg", "trainers", "labels for the next stage of a cascade"),

    # Training: the trainer
    Patched(_TRAINER, "save_json shutil", "trainers", _ATOMIC),
    Patched(_TRAINER, "DDP", "trainers", "initialize() assumes CUDA; ours also wraps on the CPU, and shards (--fsdp)"),
    Patched(_TRAINER, "load_json generate_crossval_split", "trainers",
            "do_split() searches lists of cases, which takes minutes for 100,000; the file is checked when it is read"),
    Patched(_TRAINER, "nnUNetDataLoader", "trainers", "draws single samples, seeded one by one, so that runs resume"),
    Patched(_TRAINER, "SingleThreadedAugmenter get_allowed_n_proc_DA", "trainers",
            "get_dataloaders() would start processes and draw a first batch; torch's DataLoader does that here"),
    Patched(_TRAINER, "SpatialTransform", "trainers", "rotates labels in a time that does not depend on their number"),
    Patched(_TRAINER, "GaussianBlurTransform", "trainers", "its benchmark makes rounding depend on the machine's load"),
    Patched(_TRAINER, "MirrorTransform", "trainers", "swaps left and right classes with the image (--set mirror=swap)"),
    Patched(_TRAINER, "MetaLogger", "trainers", "plots at most once a minute, and atomically"),
    Names("utilities.crossval_split", "generate_crossval_split", "trainers", "nnU-Net's five folds"),
    Names("utilities.default_n_proc_DA", "get_allowed_n_proc_DA", "trainers", "number of processes that load data"),
    Names("configuration", "default_num_processes", "trainers", "number of threads of the final validation"),
    Names(f"{_TRAINER}:nnUNetTrainer",
          "initialize run_training on_train_start on_train_epoch_start on_validation_epoch_start "
          "on_validation_epoch_end on_epoch_end on_train_end",
          "trainers", "overridden: what happens around epochs; seeds, saving, stopping"),
    Names(f"{_TRAINER}:nnUNetTrainer", "train_step validation_step perform_actual_validation", "trainers",
          "rewritten: micro-batches, shared batches, validation in bounded memory"),
    Names(f"{_TRAINER}:nnUNetTrainer", "save_checkpoint load_checkpoint", "trainers",
          "rewritten: checkpoints without pickled code, which continue within an epoch"),
    Names(f"{_TRAINER}:nnUNetTrainer",
          "_build_loss _do_i_compile _set_batch_size_and_oversample build_network_architecture configure_optimizers "
          "configure_rotation_dummyDA_mirroring_and_inital_patch_size do_split get_dataloaders "
          "get_tr_and_val_datasets "
          "get_training_transforms get_validation_transforms plot_network_architecture set_deep_supervision_enabled",
          "trainers", "overridden or called: network, loss, optimizer, data and augmentation use the plan's values"),
    Names(f"{_TRAINER}:nnUNetTrainer",
          "num_epochs num_iterations_per_epoch num_val_iterations_per_epoch initial_lr weight_decay "
          "oversample_foreground_percent",
          "plans", "attributes that values of --set replace by name (plans/settings.py)"),
    Names(f"{_TRAINER}:nnUNetTrainer",
          "_best_ema batch_size configuration_manager configuration_name current_epoch dataloader_train "
          "dataloader_val dataset_class dataset_json device disable_checkpointing enable_deep_supervision fold "
          "folder_with_segs_from_previous_stage grad_scaler inference_allowed_mirroring_axes is_cascaded is_ddp "
          "label_manager local_rank logger loss lr_scheduler my_init_kwargs network num_input_channels optimizer "
          "output_folder output_folder_base plans_manager preprocessed_dataset_folder "
          "preprocessed_dataset_folder_base print_to_log_file save_every was_initialized",
          "trainers", "the state of a training"),
    Strings(_TRAINER,
            "network_weights optimizer_state grad_scaler_state logging _best_ema current_epoch init_args "
            "trainer_name inference_allowed_mirroring_axes",
            "trainers", "keys of checkpoints, which nnU-Net's commands read"),
    Strings(_TRAINER, "checkpoint_final.pth checkpoint_latest.pth checkpoint_best.pth validation summary.json "
            "predicted_next_stage gt_segmentations",
            "trainers workspace", "files and folders of a result"),
    Names("training.logging.nnunet_logger:MetaLogger",
          "get_checkpoint get_value load_checkpoint log_summary plot_progress_png", "trainers",
          "the values of the epochs and their plot"),
    Strings("training.logging.nnunet_logger",
            "dice_per_class_or_region ema_fg_dice epoch_end_timestamps epoch_start_timestamps lrs mean_fg_dice "
            "train_losses val_losses",
            "trainers runs report cli", "keys of the values of the epochs"),

    # Training: data and augmentation
    Names("training.dataloading.data_loader:nnUNetDataLoader",
          "get_bbox get_indices _oversample_last_XX_percent", "trainers",
          "overridden: which case is drawn, whether the sample must show foreground, and where a patch lies"),
    Names("training.dataloading.data_loader:nnUNetDataLoader",
          "_data annotated_classes_key generate_train_batch has_ignore indices oversample_foreground_percent "
          "patch_size_was_2d transforms",
          "trainers", "draws a patch of a case and augments it"),
    Names(_TRAINER, "BasicTransform ComposeTransforms RandomTransform", "trainers",
          "batchgeneratorsv2's classes: nnU-Net's list of transforms, with ours added"),
    Names(f"{_TRAINER}:SpatialTransform",
          "_apply_to_segmentation align_corners border_mode_seg mode_seg padding_value_seg seg_tiebreak", "trainers",
          "label_rotation.py computes the same, where it supports these settings"),
    Names(f"{_TRAINER}:GaussianBlurTransform", "benchmark", "trainers", "switched off"),
    Names(f"{_TRAINER}:MirrorTransform", "_apply_to_segmentation allowed_axes", "trainers",
          "mirroring.py swaps left and right classes afterwards"),

    # Prediction and evaluation
    Names("inference.sliding_window_prediction", "compute_gaussian compute_steps_for_sliding_window", "inference",
          "places and weights of the windows"),
    Names("utilities.get_network_from_plans", "get_network_from_plans", "inference", "builds the network of a plan"),
    Patched("evaluation.evaluate_predictions", "multiprocessing", "trainers",
            "starting processes takes longer than evaluating most folds"),
    Names("evaluation.evaluate_predictions", "compute_metrics_on_folder save_summary_json", "trainers",
          "metrics of the final validation"),

    # Environment
    Strings("paths", "nnUNet_raw nnUNet_preprocessed nnUNet_results", "workspace", "the three folders"),
    Strings("paths", "nnUNet_extTrainer", "cli", "how stock nnUNetv2_train finds our trainers"),
    Strings("configuration", "nnUNet_def_n_proc", "nnunet", "number of processes of each of nnU-Net's pools"),
    Strings("utilities.default_n_proc_DA", "nnUNet_n_proc_DA", "trainers", "number of processes that load data"),
)
# fmt: on


def check_nnunet(names: Iterable[Names] = NAMES) -> None:
    """Raise if the installed nnU-Net is one that this package cannot work with.

    Takes about 0.3 s and imports nothing: see source_lookup.py.

    Raises:
        DataError: nnunetv2 is older than 2.8, newer than 2.x, or lacks some of `names`.
    """
    installed = version("nnunetv2")
    release = tuple(int(number) for number in installed.split(".")[:2])
    if release < OLDEST or release[0] > OLDEST[0]:
        raise DataError(
            f"nnunetv2 {installed} is installed; stunet needs 2.8 or a later 2.x", "pip install 'nnunetv2>=2.8,<3'"
        )
    missing = [(row, name) for row in names for name in row.absent()]
    if missing:
        listed = "; ".join(f"{name} in {row.module} ({row.used_by}: {row.reason})" for row, name in missing[:SHOWN])
        more = f"; and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise DataError(
            f"nnunetv2 {installed} lacks names that stunet uses: {listed}{more}",
            f"pip install 'nnunetv2=={TESTED}', the version that stunet was tested with",
        )


def limit_processes() -> None:
    """Make nnU-Net start one worker per core and pool, eight at most, instead of always eight.

    Must run before nnunetv2 is imported, which reads the variable once; a value that the user set is kept.
    """
    os.environ.setdefault("nnUNet_def_n_proc", str(min(8, os.cpu_count() or 1)))


def patch(module: ModuleType, **replacements: Any) -> None:
    """Replace names in one of nnU-Net's modules for as long as this process lives.

    Raises:
        ValueError: NAMES does not list one of them as Patched.
    """
    if unknown := replacements.keys() - _patched_in(module):
        raise ValueError(f"stunet/nnunet.py does not list {sorted(unknown)} of {module.__name__} as patched")
    for name, value in replacements.items():
        setattr(module, name, value)


@contextmanager
def patched(module: ModuleType, **replacements: Any) -> Iterator[None]:
    """Replace names in one of nnU-Net's modules while the block runs.

    For the few places where nnU-Net decides inside a long method; the alternative would be to copy that method.

    Raises:
        ValueError: NAMES does not list one of them as Patched.
    """
    before = {name: getattr(module, name) for name in replacements}
    patch(module, **replacements)
    try:
        yield
    finally:
        patch(module, **before)


def write_atomically(module: ModuleType) -> None:
    """Make one of nnU-Net's modules write JSON and copy files atomically, for as long as this process lives."""
    ours = {"save_json": _save_json, "shutil": _AtomicCopies}
    # Not whatever the module has: a later nnU-Net may import shutil where it did not, for functions that ours lacks.
    patch(module, **{name: value for name, value in ours.items() if name in _patched_in(module)})


def _patched_in(module: ModuleType) -> set[str]:
    """Return the names of a module that NAMES lists as Patched."""
    rows = [row for row in NAMES if isinstance(row, Patched) and row.module == module.__name__]
    return {name for row in rows for name in row.names.split()}


def _save_json(content: Any, file: str, indent: int = 4, sort_keys: bool = True) -> None:
    """Write JSON in the same bytes as batchgenerators does."""
    with atomic_write(Path(file)) as part, part.open("w") as stream:
        json.dump(content, stream, sort_keys=sort_keys, indent=indent)


class _AtomicCopies:
    """The functions of shutil that nnU-Net calls."""

    @staticmethod
    def copyfile(source: str, target: str) -> None:
        with atomic_write(Path(target)) as part:
            shutil.copyfile(source, part)

    @staticmethod
    def copy(source: str, target: str) -> None:
        with atomic_write(Path(target)) as part:
            shutil.copy(source, part)
