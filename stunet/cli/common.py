"""Code shared by all commands: the parser, common arguments, and turning an error into two lines and an exit code."""

import argparse
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from stunet import __version__, console
from stunet.errors import StunetError, UsageError, explain
from stunet.parts import Part, in_array, part_of, refuse_other_count

EXIT_CODES = """exit codes: 0 done, 1 unexpected, 2 usage, 3 data, plan or path missing or bad, 4 weights,
5 out of memory, 75 interrupted and resumable, 130 Ctrl-C, 141 nobody reads its output (as with | head)"""


def new_parser(program: str, description: str, examples: str = "") -> argparse.ArgumentParser:
    """Return a parser with the flags that all commands have: --verbose, --debug, --version."""
    parser = Parser(
        program,
        description=description,
        epilog=f"{examples}\n{EXIT_CODES}".strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # -pretrained_weights must not be read as -p retrained_weights
    )
    parser.add_argument("--verbose", action="store_true", help="also show what nnU-Net prints")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action="version", version=f"stunet {__version__}")
    return parser


BEST_OF = "best-of"  # in front of a rank.json: the model that is best there
# By flag, the names that people may use for it instead, out of habit from other programs.
HABITS = {
    "--c": "continue resume continue_training restart go_on last_checkpoint",
    "--val": "validate validation val_only validate_only only_val only_validate eval",
    "--overwrite": "force overwrite_existing restart_training new start_over no_resume",
    "--clean": "force overwrite overwrite_existing redo",
    "-num_parts": "parts n_parts num_shards shards num_chunks chunks array_size",
    "-part_id": "part part_index shard shard_id chunk task_index rank",
    "--merge": "merge_parts combine gather collect",
    "--continue_prediction": "continue resume skip_existing no_overwrite",
    "--pretrained": "weights init pretrained_model from_pretrained load init_weights pre_trained checkpoint ckpt",
    "--model": "weights model_folder model_dir checkpoint_dir m name",
    "-i": "input inputs in images input_folder input_dir image source ct",
    "-o": "output out output_folder output_dir results dest destination save_dir",
    "-d": "dataset dataset_id dataset_name task task_id t data",
    "-c": "configuration config configurations cfg",
    "-f": "fold folds",
    "-p": "plan plans plans_name",
    "-tr": "trainer trainer_name trainer_class",
    "-chk": "checkpoint checkpoint_name ckpt chkp",
    "-device": "gpu gpus cuda cpu mps cuda_visible_devices",
    "-num_gpus": "ngpus n_gpus gpus nproc nproc_per_node num_gpu world_size",
    "-np": "processes num_processes workers num_workers n_jobs jobs threads j n nproc cpus",
    "-npfp": "num_processes_fingerprint",
    "--cluster": "dask distributed scheduler scheduler_address slurm hosts",
    "--threads": "num_threads n_threads cpus omp_num_threads nt",
    "-j": "jobs parallel processes workers np",
    "-step_size": "overlap step stride",
    "--disable_tta": "no_tta notta no_mirroring disable_mirroring tta fast_prediction",
    "--max_memory": "memory max_ram ram mem memory_limit",
    "-gpu_memory_target": "gpu_memory memory memory_target vram",
    "--verify_dataset_integrity": "verify check check_dataset integrity",
    "--no_check": "skip_check no_verify skip_verification",
    "--no_pp": "plan_only no_preprocessing no_preprocess",
    "-overwrite_target_spacing": "target_spacing resolution",
    "-overwrite_plans_name": "plans_name name",
    "--save_probabilities": "probabilities softmax npz save_softmax save_npz",
    "--npz": "probabilities save_probabilities softmax",
    "--pool": "pooling per by rows",
    "--points": "landmarks coordinates lesions nodules",
    "--world": "space frame coordinate_system lps ras",
    "--target": "column y outcome",
    "--roi_subset": "classes organs labels_subset roi only",
    "--tolerance": "tau nsd_tolerance surface_tolerance",
    "--json": "as_json format",
    "--csv": "table excel tsv",
    "--finetune": "strategy fine_tune ft freeze",
    "--method": "pretext task ssl algorithm objective",
    "--like": "as target downstream",
    "--augment": "augmentation aug da transforms",
    "--skip_bad": "ignore_bad skip_broken skip_errors ignore_errors",
    "--accept_licence": "accept_license licence license accept agree",
    "--dry_run": "dryrun simulate test n no_write",
    "--disable_progress_bar": "no_pbar quiet no_progress q silent",
    "--no_pbar": "disable_progress_bar quiet no_progress q silent",
    "--verbose": "v debug_output log",
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors have two lines, like all errors here, and suggest what an unknown flag may have meant."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Like argparse's, but keep the arguments for error()."""
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """End the command with exit code 2."""
        flags = self._all_flags()
        unknown = [word.partition("=")[0] for word in self._given if re.match(r"--?[A-Za-z]", word)]
        unknown = [word for word in unknown if word not in flags]
        # With these words argparse already names the flag that is wrong.
        if unknown and not re.match("argument|ambiguous", message):
            meant = _meant(unknown[0], flags)
            what = f"unknown flag {unknown[0]!r}" + (f"; did you mean {meant!r}?" if meant else "")
            console.error(self.prog, what, f"{meant}, or {self.prog} --help" if meant else f"{self.prog} --help")
        else:
            console.error(self.prog, message, f"{self.prog} --help")
        self.exit(UsageError.exit_code)

    def _get_option_tuples(self, option_string: str) -> Any:
        """Return no matches for long words after a single dash; -d3 is -d 3 as everywhere.

        argparse would read -devce as -d evce, and -dev as -device.
        """
        return [] if re.match("-[A-Za-z][A-Za-z_]", option_string) else super()._get_option_tuples(option_string)

    def _all_flags(self) -> list[str]:
        """Return the flags of the command and of the sub-command that was given."""
        flags = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, parser in action.choices.items():
                    flags += list(parser._option_string_actions) if name in self._given else []
        return flags


def _meant(flag: str, flags: Sequence[str]) -> str | None:
    """Return the flag that somebody who wrote an unknown one may have meant, if any."""
    from stunet.plans.settings import KNOWN, known_as

    word = flag.lstrip("-").lower().replace("-", "_")
    same = [known for known in flags if known.lstrip("-").lower() == word]  # --device for -device
    habits = [known for known, words in HABITS.items() if known in flags and word in words.split()]
    if same or habits:
        return [*same, *habits][0]
    if "--set" in flags and (key := known_as(word)):
        return f"--set {key}={KNOWN[key].example}"
    words = {known.lstrip("-").lower(): known for known in flags}
    near = get_close_matches(word, [known for known in words if len(known) > 1], n=1, cutoff=0.6)
    return words[near[0]] if near else None


def add_licence_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag that accepts the licence of a model that is downloaded."""
    parser.add_argument(
        "--accept_licence",
        action="store_true",
        help="accept the licence of a model that may not be used commercially, before its first download",
    )


def add_cluster_flag(parser: argparse.ArgumentParser) -> None:
    """Add --cluster, which names the Dask workers that do the cases."""
    parser.add_argument(
        "--cluster",
        metavar="local:N|tcp://HOST:PORT|slurm:N",
        help="do the cases on Dask workers (docs/cluster.md): N here, those of a scheduler, or N Slurm jobs",
    )


def add_log_flag(parser: argparse.ArgumentParser) -> None:
    """Add --log, which names where a training is followed besides its folder."""
    where = "tensorboard, mlflow or wandb (extras of the same names); csv is metrics.csv, which every training has"
    parser.add_argument(
        "--log", nargs="+", action="extend", default=[], metavar="WHERE", help=f"follow the run there, too: {where}"
    )


def add_part_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags with which several runs share the cases of a command."""
    add = parser.add_argument
    add("-num_parts", type=int, metavar="N", help="share the cases between N runs (default: a Slurm array's, or 1)")
    add("-part_id", type=int, metavar="I", help="which of them this is, from 0 (default: that of the array's task)")
    add("--merge", action="store_true", help="do no case: write what the last of the parts would write")


def parts(args: argparse.Namespace, *files: Path) -> dict[str, Any]:
    """Return the fields of a request that add_part_flags() gives; say which part of a Slurm array this is.

    Args:
        args: Of the command.
        files: What it reads and writes. If one is an image, as where each task of an array has its own, there is
            nothing to share: the array does not count.
    """
    if args.merge:
        return {"num_parts": Part(0, args.num_parts or 1).count, "merge": True}
    if args.num_parts is None and args.part_id is None and any(_is_image(path) for path in files):
        return {}
    part = part_of(args.num_parts, args.part_id)
    if args.num_parts is None and args.part_id is None and in_array():
        refuse_other_count(part, files)
    if not part.is_whole and args.part_id is None:
        console.note(f"{part}, by the Slurm array; -num_parts 1 takes all cases, if its tasks are something else")
    return {"num_parts": part.count, "part_id": part.number}


def _is_image(path: Path) -> bool:
    """Return whether a path names a single image, which need not exist yet, or a folder of DICOM slices; not a list."""
    from stunet.datasets.listing import ending_of

    if not path.is_dir():
        return bool(ending_of(path.name))
    return any(name.lower().endswith(".dcm") for name in os.listdir(path))


def fold(text: str) -> int | str:
    """Return the fold that a flag names."""
    if text != "all" and not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor all")
    return text if text == "all" else int(text)


def positive(text: str) -> int:
    """Return the number above 0 that a flag gives."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


class _Notes(logging.Handler):
    """Shows what the library logs as messages, which bars make way for."""

    def emit(self, record: logging.LogRecord) -> None:
        console.note(self.format(record))


def run(
    parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], int | None], argv: Sequence[str] | None
) -> int:
    """Parse, run the command and return its exit code; a known error ends in one line and a hint."""
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could come next: extra stunet[complete]
        import argcomplete

        argcomplete.autocomplete(parser)
    args = parser.parse_args(_joined(sys.argv[1:] if argv is None else argv))
    level = logging.INFO if args.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=[_Notes()])
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    # Threads that spin while waiting slow each other down up to 20 times on a shared machine (benchmarks/startup.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with console.reserve_stdout(args.verbose):
            _choose_best(args)
            return command(args) or 0
    except console.OutputClosed:
        return 141  # 128 + SIGPIPE, as a shell reports it
    except KeyboardInterrupt:
        console.error(parser.prog, "stopped by Ctrl-C", "")
        return 130  # 128 + SIGINT
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        if args.debug:
            traceback.print_exc()
        known = explain(error)
        console.error(parser.prog, known.message, known.hint)
        return known.exit_code


def _joined(words: Sequence[str]) -> list[str]:
    """Return the words with `best-of FILE` as one, since --pretrained takes one, and others may follow."""
    joined: list[str] = []
    for word in words:
        if joined[-2:] == ["--pretrained", BEST_OF]:
            joined[-1] = f"{BEST_OF} {word}"
        else:
            joined.append(word)
    return joined


def _choose_best(args: argparse.Namespace) -> None:
    """Replace `--pretrained best-of rank.json` by the weights that are best there."""
    given = getattr(args, "pretrained", None)
    texts = [str(text) for text in (given if isinstance(given, list) else [given])]
    if not any(text.split(" ")[0] == BEST_OF for text in texts):
        return
    from stunet.ranking.outcome import best_of

    chosen = []
    for text in texts:
        word, _, path = text.partition(" ")
        if word == BEST_OF and not path:
            raise UsageError(f"--pretrained {BEST_OF} lacks a file", f"--pretrained {BEST_OF} rank.json")
        chosen.append(best_of(Path(path)) if word == BEST_OF else text)
        if word == BEST_OF:
            console.note(f"best of {path}: {chosen[-1]}")
    args.pretrained = chosen if isinstance(given, list) else chosen[0]


def raise_last(problems: Sequence[StunetError], program: str) -> None:
    """Raise the last of the errors of several tasks, after showing the others."""
    for error in problems[:-1]:
        console.error(program, error.message, error.hint)
    if problems:
        raise problems[-1]
