"""Find what is wrong with a union. Each function looks for one problem and reports what, where, and how to fix it.

No file is read here; scan.py has done that. space.py finds problems of names and sets, splits.py those of folds.
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from stunet.errors import DataError, first_few
from stunet.labels.annotations import mirrored_values
from stunet.labels.names import sides as sides_of
from stunet.machine import GB
from stunet.merging import Finding
from stunet.merging.estimate import Estimate, label_counts
from stunet.merging.scan import CaseScan
from stunet.merging.space import unasked_tumours
from stunet.merging.union import Union, case_name

SHOWN = 5  # names in a message
RARE = 0.01  # fraction of the draws
LARGEST_UINT8 = 255
# `nc` as a word of its own, as in CC BY-NC: `licence` contains it, too. Likewise `sa`.
NONCOMMERCIAL = re.compile(r"(?<![a-z])nc(?![a-z])|non.?commercial", re.IGNORECASE)
SHARE_ALIKE = re.compile(r"(?<![a-z])sa(?![a-z])|share.?alike", re.IGNORECASE)


def find_all(union: Union, estimate: Estimate, target: Path) -> list[Finding]:
    """Return all findings on a union whose sources and labels could be read."""
    searches: list[Iterator[Finding]] = [
        search(union)
        for search in (
            *(licences, channels, modalities, learnable, single_sources, separate_leaves, absent_labels, empty_leaves),
            *(sides, duplicates, same_names, without_fold, rare_sources, wide_labels),
        )
    ]
    searches += [unasked_tumours(union.recipe, union.space), room(union, estimate, target)]
    return [finding for search in searches for finding in search]


def licences(union: Union) -> Iterator[Finding]:
    """Find sources without a licence, or with one that limits what may be done with the union."""
    known = {name: member.licence for name, member in union.members.items()}
    for name, licence in known.items():
        if not licence:
            text = f"source {name!r} has no licence, neither in the recipe nor in its dataset.json"
            yield Finding(text, "license: CC-BY-4.0, as its publisher says", fatal=False)
        elif NONCOMMERCIAL.search(licence) and not union.recipe.allow_noncommercial:
            text = (
                f"source {name!r} is under {licence}: the union, and what is trained on it, are not for commercial use"
            )
            yield Finding(text, "leave the source out, or agree: defaults: {allow_noncommercial: true}")
    alike = sorted({licence for licence in known.values() if SHARE_ALIKE.search(licence)})
    if alike and len(set(known.values())) > 1:
        text = (
            f"{', '.join(alike)} requires the same licence for what is made from it, and other sources have another one"
        )
        yield Finding(text, "share the union, if at all, only under terms that all sources allow", fatal=False)


def channels(union: Union) -> Iterator[Finding]:
    """Find sources whose number of channels differs from that of the first."""
    first, *others = union.members.values()
    for member in others:
        if len(member.rules.channels) != len(first.rules.channels):
            counts = (
                f"{m.recipe.id!r} has {len(m.rules.channels)}: {', '.join(m.rules.channels)}" for m in (member, first)
            )
            yield Finding(
                f"source {next(counts)}; {next(counts)}", "give all sources the same channels, or leave one out"
            )


def modalities(union: Union) -> Iterator[Finding]:
    """Find cases without a modality, and cases other than CT if intensities are treated as CT numbers."""
    for name, member in union.members.items():
        kinds = {case.name: member.modality(case.name) for case in member.cases}
        unknown = [case for case, kind in kinds.items() if not kind]
        if unknown:
            text = f"source {name!r}: no rule of its modality matches {_some(unknown)}"
            yield Finding(text, 'add a rule, such as MR: ">=500", or exclude them')
        other = [case for case, kind in kinds.items() if kind and kind.upper() != "CT"]
        if union.recipe.scheme == "ct" and other:
            text = f"source {name!r}: intensity is ct, but {_some(other)} is {kinds[other[0]]}"
            yield Finding(text, "intensity: {scheme: zscore}, which takes any modality; or exclude them")


def learnable(union: Union) -> Iterator[Finding]:
    """Find classes that no source annotates, and classes that no source distinguishes from each other."""
    if len(union.members) < len(union.recipe.sources):
        return  # what an unreadable source annotates is unknown
    missing = [leaf for leaf in union.recipe.classes if leaf not in union.space.leaves]
    listed = [leaf for leaf in missing if leaf in union.recipe.required]
    if listed:
        text = f"no source annotates {_some(listed)}"
        yield Finding(text, "take it out of classes or extra_classes, or map a label of a source to it")
    if len(missing) > len(listed):
        text = f"{len(missing) - len(listed)} classes of {union.recipe.content['classes']!r} are annotated nowhere"
        yield Finding(text, "nothing: the union has the others", fatal=False)
    hint = "make them one class in classes, or add a source that tells them apart"
    alike: dict[tuple[int, ...], list[str]] = {}
    groups = _groups(union)
    for leaf in union.space.leaves:
        alike.setdefault(groups[leaf], []).append(leaf)
    for leaves in (leaves for leaves in alike.values() if len(leaves) > 1):
        yield Finding(f"no source tells {_some(leaves)} apart: they are only ever in the same label", hint)
    alone = {leaf for own in union.annotated.values() for labels in own.values() for leaf in labels}
    coarse = [leaf for leaf in union.space.leaves if leaf not in alone and len(alike[groups[leaf]]) == 1]
    if union.recipe.head == "sigmoid" and coarse:
        yield Finding(f"no source annotates {_some(coarse)} by itself, which a sigmoid head needs", hint)


def _groups(union: Union) -> dict[str, tuple[int, ...]]:
    """Return, by leaf, the number of the label that has it in each distinct set of annotated labels; 0 for none."""
    numbers = {label: number for number, label in enumerate(union.annotations.labels, start=1)}
    distinct = sorted({labels for own in union.annotated.values() for labels in own.values()})
    owners = [{leaf: numbers[n] for n in labels for leaf in union.annotations.labels[n]} for labels in distinct]
    return {leaf: tuple(owner.get(leaf, 0) for owner in owners) for leaf in union.space.leaves}


def single_sources(union: Union) -> Iterator[Finding]:
    """Find classes that only one source annotates: what they look like elsewhere is not learned."""
    if len(union.members) == 1:
        return
    owners: dict[str, list[str]] = {}
    for leaf in union.space.leaves:
        names = [n for n, labels in union.annotations.labels.items() if leaf in labels and union.annotating(n)]
        sources = sorted({source for name in names for source in union.annotating(name)})
        # A class with @ belongs to one source because the recipe says so.
        if len(sources) == 1 and "@" not in leaf:
            owners.setdefault(sources[0], []).append(leaf)
    for source, leaves in owners.items():
        text = f"only source {source!r} annotates {_some(leaves)}"
        yield Finding(text, "nothing, if its images are like those of the others", fatal=False)


def separate_leaves(union: Union) -> Iterator[Finding]:
    """Find leaves of a single source next to the class of the same name; in a softmax head they exclude each other."""
    for leaf in union.space.leaves:
        name, _, source = leaf.partition("@")
        if source and name in union.space.leaves and union.recipe.head == "softmax":
            text = f"{leaf!r} and {name!r} claim the same voxels, and in a softmax head each excludes the other"
            yield Finding(text, f"head: sigmoid, or {{as: unannotated}} in source {source!r}", fatal=False)


def absent_labels(union: Union) -> Iterator[Finding]:
    """Find labels that a source is supposed to annotate but that none of its files has."""
    if union.recipe.on_absent != "error":
        return
    for name in union.members:
        absent = [
            union.space.meanings[name][value].name
            for value in absent_values(union.space.meanings[name], union.scans[name])
        ]
        if absent:
            yield Finding(
                f"source {name!r}: {_some(absent)} occurs in none of its {len(union.scans[name])} label files",
                f"if it is not annotated: labels: {{{absent[0]}: {{as: unannotated}}}}, or for all sources "
                "defaults: {on_absent_label: unannotated}; if these patients lack it: {on_absent_label: keep}",
            )


def absent_values(meanings: Mapping[int, object], scans: Mapping[str, CaseScan]) -> list[int]:
    """Return the annotated values that no file of a source has."""
    present = {value for scan in scans.values() for value in scan.voxels}
    return [value for value, meaning in meanings.items() if getattr(meaning, "leaves", ()) and value not in present]


def empty_leaves(union: Union) -> Iterator[Finding]:
    """Find classes that are annotated but occur in no case: a model learns only that they are never there."""
    filled = {
        leaf for label, (_, voxels) in label_counts(union).items() if voxels for leaf in union.annotations.labels[label]
    }
    empty = [leaf for leaf in union.space.leaves if leaf not in filled]
    if empty and union.recipe.on_absent == "keep":
        text = f"no case of any source has a voxel of {_some(empty)}, although annotated"
        yield Finding(text, "on_absent_label: unannotated, which leaves them out", fatal=False)


def sides(union: Union) -> Iterator[Finding]:
    """Find left-right pairs whose left class is on the patient's right, or that mirroring cannot exchange."""
    if union.recipe.mirror == "swap":
        try:
            mirrored_values(union.annotations)
        except DataError as error:
            yield Finding(error.message, "mirror: auto, which does not mirror left and right")
    for name, scans in union.scans.items():
        for left, right in sides_of(union.space.labels(name)).pairs:
            values = [union.space.values(name, label) for label in (left, right)]
            swapped, seen = [], 0
            for case, scan in scans.items():
                centres = [_centre(scan, own) for own in values]
                if None not in centres:
                    seen += 1
                    # The last axis runs from the patient's left to right (scan.py), so left has the smaller index.
                    swapped += [case] if centres[0] > centres[1] else []  # type: ignore[operator]
            if swapped:
                text = f"source {name!r}: {left} is on the patient's right of {right}"
                where = f"{text} in {len(swapped)} of {seen} cases: {_some(swapped)}"
                hint = "swap the two under labels, or correct the files' orientation; or exclude these cases"
                # In most cases, names or orientations are wrong; in a few, it may be the patient.
                yield Finding(where, hint, fatal=2 * len(swapped) > seen)


def _centre(scan: CaseScan, values: Sequence[int]) -> float | None:
    voxels = sum(scan.voxels.get(value, 0) for value in values)
    total = sum(scan.voxels[value] * scan.centre[value] for value in values if value in scan.voxels)
    return total / voxels if voxels else None


def duplicates(union: Union) -> Iterator[Finding]:
    """Find images that occur several times; fatal if in several sources, or on both sides of a fold."""
    same: dict[str, list[tuple[str, str]]] = {}
    for name, scans in union.scans.items():
        for case, scan in scans.items():
            same.setdefault(scan.fingerprint, []).append((name, case))
    training = [(set(fold["train"]), set(fold["val"])) for fold in union.folds]
    for cases in (cases for cases in same.values() if len(cases) > 1):
        names = {case_name(*case) for case in cases}
        listed = " and ".join(f"{case!r} of {source!r}" for source, case in cases[:SHOWN])
        leak = any(names & train and names & validation for train, validation in training)
        across = len({source for source, _ in cases}) > 1
        where = ", in training and in validation" if leak else ""
        hint = f"keep one of them: exclude: [{cases[-1][1]}] in source {cases[-1][0]!r}"
        yield Finding(f"the same image is {listed}{where}", hint, fatal=leak or across)


def same_names(union: Union) -> Iterator[Finding]:
    """Find cases of two sources that would have the same name in the union."""
    seen: dict[str, tuple[str, str]] = {}
    for source, scans in union.scans.items():
        for case in scans:
            # Source `a_b` with case `c` makes the same name as source `a` with case `b_c`.
            name = case_name(source, case)
            if name in seen:
                both = " and ".join(f"{c!r} of {s!r}" for s, c in (seen[name], (source, case)))
                yield Finding(f"{both} would both be called {name!r}", "change the id of a source")
            seen[name] = source, case


def without_fold(union: Union) -> Iterator[Finding]:
    """Find cases that are in no fold."""
    used = {name for fold in union.folds for names in fold.values() for name in names}
    for source, scans in union.scans.items():
        left = [case for case in scans if case_name(source, case) not in used]
        if left:
            text = f"source {source!r}: its folds leave out {_some(left)}"
            yield Finding(text, "split: seeded, to use all of them; or exclude them", fatal=False)


def rare_sources(union: Union) -> Iterator[Finding]:
    """Find sources that are hardly ever drawn."""
    for name, share in union.shares().items():
        if share < RARE:
            text = f"source {name!r} has {share:.2%} of the draws"
            yield Finding(text, "a larger weight, or sampling: {alpha: 1}, which draws all sources alike", fatal=False)


def wide_labels(union: Union) -> Iterator[Finding]:
    """Find label values that do not fit into a byte."""
    largest = max(union.values.values())
    if largest > LARGEST_UINT8:
        text = f"the union has values up to {largest}: its label files hold 16-bit integers"
        yield Finding(text, "nothing; some viewers show only 255 labels", fatal=False)


def room(union: Union, estimate: Estimate, target: Path) -> Iterator[Finding]:
    """Find a lack of disk space for the union."""
    # Neither the dataset nor, perhaps, nnUNet_raw exists yet.
    place = next(parent for parent in target.parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < estimate.raw_bytes:
        sizes = f"{estimate.raw_bytes / GB:.1f} GB in {str(place)!r}, which has {free / GB:.1f} GB left"
        yield Finding(f"the union takes about {sizes}", "free some space, or images: reference, which copies none")


def _some(names: Sequence[str]) -> str:
    return first_few(list(map(repr, names)), SHOWN, ", ")
