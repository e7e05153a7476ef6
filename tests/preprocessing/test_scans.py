"""What is known about preprocessed scans is found once, kept, and found again where files have changed."""

from pathlib import Path

from stunet.plans.files import plan_path, read_plan
from stunet.preprocessing.scans import Scan, look_at_scans


def test_scans_are_read_once_and_again_when_they_change(pre: Path) -> None:
    plan, kept = read_plan(plan_path(pre.name)), pre / "STUNetPlans_3d_fullres" / ".stunet" / "scans.json"
    kept.unlink(missing_ok=True)  # of another test

    def look(keeps: bool = True) -> tuple[dict[str, Scan], list[str]]:
        read: list[str] = []
        return look_at_scans(pre.name, plan, "3d_fullres", 1, lambda name, scans: read.append(name), keeps), read

    found, read = look(keeps=False)
    assert len(read) == 6
    assert look() == (found, read)
    assert look() == (found, [])
    assert set(found.values()) == {Scan((1, 16, 24, 24), "")}
    file = pre / "STUNetPlans_3d_fullres" / "phantom_002.b2nd"
    file.write_bytes(file.read_bytes()[:-300])
    after, read = look()
    assert read == ["phantom_002"]
    assert "cannot read the preprocessed files of case 'phantom_002'" in after["phantom_002"].problem
    assert {name: scan for name, scan in after.items() if name != "phantom_002"}.items() <= found.items()
    kept.write_text("{")
    assert len(look()[1]) == 6


def test_a_scan_says_why_it_cannot_be_used() -> None:
    scan = Scan((2, 16, 24, 30), "")
    assert scan.unusable([16, 24, 30], 2) == ""
    assert scan.unusable([24, 30], 2) == ""
    assert scan.unusable([16, 24, 32], 2) == "is smaller than the patch: 16 x 24 x 30, not 16 x 24 x 32 voxels"
    assert scan.unusable([16, 24, 30], 1) == "has 2 channels, not 1"
    assert Scan((), "is gone").unusable([16], 1) == "is gone"
