"""stunet_merge: merge many datasets into one that records what each case annotates. stunet/merging does the work."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stunet import console, workspace
from stunet.cli import live
from stunet.cli.common import new_parser, run
from stunet.errors import DataError

if TYPE_CHECKING:
    from stunet.merging import Finding
    from stunet.merging.check import CheckedUnion
    from stunet.merging.estimate import Estimate
    from stunet.merging.recipe import Recipe
    from stunet.merging.union import Union

EXAMPLES = """examples:
  stunet_merge init merge.yaml -d 3 7 218        write a draft of the file: datasets, classes, what each label is
  stunet_merge check merge.yaml       read all files once, name every problem, write a report: merge.checked.html
  stunet_merge build merge.yaml       the same, then nnUNet_raw/DatasetXXX_Name; goes on where it was stopped
docs/pretraining.md explains merge.yaml."""


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser, with the actions init, check and build."""
    parser = new_parser("stunet_merge", "Make one dataset of many that each annotate some classes.", EXAMPLES)
    actions = parser.add_subparsers(dest="action", required=True, metavar="init|check|build")
    begin = actions.add_parser("init", help="write a merge.yaml to begin with", allow_abbrev=False)
    begin.add_argument("recipe", type=Path, metavar="merge.yaml", help="the new file")
    begin.add_argument("-d", nargs="+", required=True, metavar="ID", help="numbers or names of raw datasets")
    begin.add_argument("--name", default="Dataset900_Union", help="of the union (default: %(default)s)")
    begin.set_defaults(np=1)
    for name, text in (
        ("check", "problems, and a report beside the file; writes no dataset"),
        ("build", "check, then write the dataset"),
    ):
        action = actions.add_parser(name, help=text, allow_abbrev=False)
        action.add_argument("recipe", type=Path, metavar="merge.yaml", help="which datasets, and what their labels are")
        action.add_argument("-np", type=int, default=2, metavar="N", help="processes that read and write (default 2)")
        for flag, about in (
            ("--verbose", "also show what the libraries print"),
            ("--debug", "show the traceback of an error"),
        ):
            # SUPPRESS, because a default of the sub-command would replace the same flag before the action.
            action.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=about)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(build_parser(), _merge, argv)


def _merge(args: argparse.Namespace) -> int:
    from stunet.errors import UsageError
    from stunet.merging.build import build
    from stunet.merging.check import check, leave_receipt, open_sources, see_receipt, state
    from stunet.merging.provenance import is_there
    from stunet.merging.recipe import load_recipe

    if args.action == "init":
        from stunet.merging.draft import write_draft

        write_draft(args.recipe, args.d, args.name)
        console.result(str(args.recipe))
        console.note(f"next: look at it, then stunet_merge check {args.recipe}")
        return 0
    if args.np < 1:
        raise UsageError(f"-np {args.np}: the number of processes must be at least 1", "-np 2")
    recipe = load_recipe(args.recipe)
    members, findings = open_sources(recipe)
    now = state(recipe, members)
    if args.action == "build" and not findings:
        see_receipt(recipe, now)
        target = workspace.folder("nnUNet_raw") / recipe.name
        if is_there(target, now):
            console.result(str(target))
            console.note("it is there already, built from the same recipe and the same files")
            return 0
    with live.Progress("check", sum(len(member.cases) for member in members.values())) as progress:
        checked = check(recipe, members, args.np, progress.step)
    findings += checked.findings
    if args.action == "check":
        if checked.union and checked.estimate:
            report(checked.union, checked.estimate)
        _write_page(recipe, checked, findings)
    show(findings)
    if any(finding.fatal for finding in findings):
        number = sum(finding.fatal for finding in findings)
        raise DataError(f"{number} problems in {str(args.recipe)!r}, listed above", "mend them, then check again")
    if args.action == "check":
        leave_receipt(recipe, now)
        console.note(f"next: stunet_merge build {args.recipe}")
        return 0
    with live.Progress("build", sum(len(member.cases) for member in members.values())) as progress:
        target = build(checked, args.np, progress.step)
    console.result(str(target))
    for command in _next(recipe):
        console.note(f"next: {command}")
    return 0


def show(findings: "Sequence[Finding]") -> None:
    """Show all findings: warnings, then problems."""
    for finding in sorted(findings, key=lambda finding: finding.fatal):
        console.note(f"{'problem' if finding.fatal else 'warning'}: {' '.join(finding.message.split())}")
        console.note(f"  try: {finding.hint}")


def report(union: "Union", estimate: "Estimate") -> None:
    """Show what the union would be: its sources, labels, overlapping regions and size."""
    from stunet.merging import page as pages

    console.table(list(pages.SOURCES), pages.sources(union), union.recipe.name)
    console.result("")
    console.table(list(pages.LABELS), pages.labels(union))
    if overlapping := pages.overlaps(union):
        console.result("")
        console.table(list(pages.OVERLAPS), overlapping)
    console.result("")
    for name, value in pages.sizes(union, estimate):
        console.result(f"{name}: {value}")


def _write_page(recipe: "Recipe", checked: "CheckedUnion", findings: "Sequence[Finding]") -> None:
    """Write the report beside the recipe."""
    from stunet.merging import page as pages
    from stunet.merging.check import page_of
    from stunet.report import page

    page.write(pages.page(recipe, checked, findings), page_of(recipe))
    console.note(f"wrote {page_of(recipe)}")


def _next(recipe: "Recipe") -> list[str]:
    """Return the next commands, with the values of the recipe that a raw dataset cannot hold."""
    number = workspace.dataset_number(recipe.name)
    spacing = " ".join(f"{pitch:g}" for pitch in recipe.spacing or ())
    plan = f"stunet_plan_and_preprocess -d {number}" + (f" -overwrite_target_spacing {spacing}" if spacing else "")
    values = {
        "patch_size": None if recipe.patch is None else f"[{','.join(map(str, recipe.patch))}]",
        "oversample_foreground_percent": recipe.oversample_foreground,
        "mirror": None if recipe.mirror == "auto" else recipe.mirror,
    }
    given = " ".join(f"{key}={value}" for key, value in values.items() if value is not None)
    train = f"stunet_train {number} 3d_fullres 0 -tr STUNetPartialTrainer" + (f" --set {given}" if given else "")
    return [plan, train]
