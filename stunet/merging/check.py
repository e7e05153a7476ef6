"""Check whether a union can be built from a recipe, before anything is written, and report all problems.

What a check saw is kept next to the recipe (merge.checked.json), so that a build refuses sources that have changed
since someone read the report.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stunet import workspace
from stunet.errors import DataError, first_few
from stunet.files import json_differences, sha256_of, sha256_of_json, write_json
from stunet.kinds import read
from stunet.merging import Finding
from stunet.merging.estimate import Estimate, estimate
from stunet.merging.findings import absent_values, find_all
from stunet.merging.recipe import UNANNOTATED, Recipe
from stunet.merging.scan import CaseScan, files_of, scan, tidy
from stunet.merging.space import Space, find_space, forget
from stunet.merging.splits import find_folds
from stunet.merging.union import Member, Union, annotated_by, open_source
from stunet.schema import anything, dict_of


@dataclass(frozen=True)
class CheckedUnion:
    """Result of a check: the union if it could be put together, and all findings."""

    union: Union | None
    estimate: Estimate | None
    findings: list[Finding]

    @property
    def fatal(self) -> bool:
        """Whether a finding prevents the build."""
        return any(finding.fatal for finding in self.findings)


def open_sources(recipe: Recipe) -> tuple[dict[str, Member], list[Finding]]:
    """Return the sources that can be opened, and what is wrong with the others."""
    members: dict[str, Member] = {}
    findings = []
    for source in recipe.sources:
        try:
            members[source.id] = open_source(recipe, source)
        except DataError as error:
            findings.append(Finding(f"source {source.id!r}: {error.message}", error.hint))
    return members, findings


def check(
    recipe: Recipe,
    members: Mapping[str, Member],
    workers: int = 1,
    on_case: Callable[[str], None] = lambda name: None,
) -> CheckedUnion:
    """Read every file of the sources once, and look for all problems that findings.py, space.py and splits.py know.

    Args:
        recipe: What is to be built.
        members: The sources that could be opened.
        workers: Number of reading processes.
        on_case: Called with the name of a case once it has been read.
    """
    descriptions = {name: member.description for name, member in members.items()}
    space, findings = find_space(recipe, descriptions, {name: m.annotations for name, m in members.items()})
    scans: dict[str, dict[str, CaseScan]] = {}
    for name, member in members.items():
        scans[name], problems = _scan(member, cache_of(recipe), workers, on_case)
        findings += [Finding(f"source {name!r}: {problem.message}", problem.hint) for problem in problems]
    # Results are appended, so those of files that have changed since are still in it.
    if cache_of(recipe).is_file():
        tidy(cache_of(recipe))
    # What follows needs readable cases of every source, and a class.
    if not all(scans.values()) or not space.leaves:
        return CheckedUnion(None, None, findings)
    # Before anything is derived from the space: labels that no file has are not part of it.
    if recipe.on_absent == UNANNOTATED:
        space = forget(recipe, space, {name: absent_values(space.meanings[name], own) for name, own in scans.items()})
    annotated = {}
    for name, member in members.items():
        annotated[name], problems_of_cases = _annotated(member, space, scans[name])
        findings += problems_of_cases
    folds, problems = find_folds(recipe, list(members.values()))
    findings += [Finding(problem.message, problem.hint) for problem in problems]
    union = Union(recipe, members, space, annotated, scans, folds)
    size = estimate(union)
    return CheckedUnion(union, size, findings + find_all(union, size, workspace.folder("nnUNet_raw") / recipe.name))


def cache_of(recipe: Recipe) -> Path:
    """Return the file in which the scans of a recipe's cases are kept."""
    return recipe.path.with_suffix(".scan.jsonl")


def receipt_of(recipe: Recipe) -> Path:
    """Return the file in which a check records what it saw."""
    return recipe.path.with_suffix(".checked.json")


def page_of(recipe: Recipe) -> Path:
    """Return the file of the report that a check writes."""
    return recipe.path.with_suffix(".checked.html")


def state(recipe: Recipe, members: Mapping[str, Member]) -> dict[str, Any]:
    """Return what a build depends on: the recipe, and per source its dataset.json, its cases and their files."""
    sources = {
        name: {
            "dataset": member.folder.name,
            "dataset.json": member.sha256,
            "cases": len(member.cases),
            "files": sha256_of_json([files_of(case) for case in member.cases]),
            "annotated_overrides": _sha256_if_any(member.recipe.overrides),
        }
        for name, member in members.items()
    }
    content = {"recipe": recipe.content, "classes": list(recipe.classes), "sources": sources}
    return json.loads(json.dumps(content, default=str))  # as it is read back: YAML has dates, JSON has none


def leave_receipt(recipe: Recipe, now: Mapping[str, Any]) -> None:
    """Record what a check saw."""
    write_json(receipt_of(recipe), now)


def see_receipt(recipe: Recipe, now: Mapping[str, Any]) -> None:
    """Check that the sources are still those that were checked.

    If the recipe itself has changed, nothing is compared: its build checks everything again.

    Raises:
        DataError: A source has changed, or is gone.
    """
    if not receipt_of(recipe).is_file():
        return
    before = read(receipt_of(recipe), dict_of(anything), f"stunet_merge check {recipe.path}")
    if before.get("recipe") == now["recipe"]:
        # An edited recipe is checked again by its build; only sources that changed under the same one are refused.
        changed = json_differences(before.get("sources"), now["sources"], "sources")
        if changed:
            text = f"since {str(recipe.path)!r} was checked, this has changed: {first_few(changed)}"
            raise DataError(text, f"stunet_merge check {recipe.path}")


def _sha256_if_any(path: Path | None) -> str | None:
    return sha256_of(path) if path and path.is_file() else None


def _scan(
    member: Member, cache: Path, workers: int, on_case: Callable[[str], None]
) -> tuple[dict[str, CaseScan], list[DataError]]:
    found = scan(member.cases, member.rules, cache, workers, on_case)
    pairs = [(case.name, result) for case, result in zip(member.cases, found, strict=True)]
    scans = {name: result for name, result in pairs if isinstance(result, CaseScan)}
    return scans, [result for _, result in pairs if isinstance(result, DataError)]


def _annotated(
    member: Member, space: Space, scans: Mapping[str, CaseScan]
) -> tuple[dict[str, tuple[str, ...]], list[Finding]]:
    """Return what the readable cases of a source annotate; a case that annotates nothing is a finding."""
    annotated, findings = annotated_by(member, space)
    nothing = [case for case, labels in annotated.items() if not labels]
    if nothing:
        text = f"source {member.recipe.id!r}: {len(nothing)} cases annotate no class, such as {nothing[0]!r}"
        findings.append(Finding(text, "exclude them, or say what their labels are"))
    return {case: labels for case, labels in annotated.items() if case in scans}, findings
