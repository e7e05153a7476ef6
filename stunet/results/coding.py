"""Look up the SNOMED CT codes of a class by its name, in DICOM's own lists.

pydicom contains the lists of PS3.16; the anatomical structures are in context group 7192. A name that no list has gets
the general code for an anatomical structure, and only the segment's label says which one it is. Needs pydicom.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stunet.labels.names import canonical

if TYPE_CHECKING:
    from pydicom.sr.coding import Code

# DICOM keywords that differ from our names, by canonical name, with or without its side.
_KEYWORDS = {
    "atrial_appendage_left": "LeftAuricularAppendage",
    "atrial_appendage_right": "RightAuricularAppendage",
    "brachiocephalic_trunk": "BrachiocephalicTrunk",
    "brachiocephalic_vein": "BrachiocephalicVein",
    "cartilage_costal": "CostalCartilage",
    "clavicula": "Clavicle",
    "head_of_femur": "FemoralHead",
    "heart_atrium_left": "LeftAtrium",
    "heart_atrium_right": "RightAtrium",
    "heart_ventricle_left": "LeftVentricle",
    "heart_ventricle_right": "RightVentricle",
    "iliac_artery": "CommonIliacArtery",
    "iliac_vena": "CommonIliacVein",
    "lung_lower_lobe": "LowerLobeOfLung",
    "lung_middle_lobe_right": "MiddleLobeOfRightLung",
    "lung_upper_lobe": "UpperLobeOfLung",
    "small_bowel": "SmallIntestine",
    "thyroid_gland": "Thyroid",
    "urinary_bladder": "Bladder",
    "vertebrae": "Vertebra",
}
# Not in DICOM's list; taken from TotalSegmentator's totalsegmentator_snomed_mapping.csv.
_OTHERS = {
    "autochthon": ("244849004", "Deep muscle of back"),
    "gluteus_maximus": ("181674001", "Gluteus maximus muscle"),
    "gluteus_medius": ("78333006", "Gluteus medius muscle"),
    "gluteus_minimus": ("75297007", "Gluteus minimus muscle"),
    "heart_myocardium": ("74281007", "Myocardium"),
    "iliopsoas": ("68455001", "Iliopsoas muscle"),
    "portal_vein_and_splenic_vein": ("110765007", "Portal vein and splenic vein"),
    "vertebrae_s1": ("65985001", "S1 vertebra"),
}
_LESIONS = {"tumor": "Neoplasm", "cancer": "Neoplasm", "neoplasm": "Neoplasm", "cyst": "Cyst", "lesion": "Lesion"}
_SIDES = {"left": "Left", "right": "Right"}


@dataclass(frozen=True)
class Coding:
    """The codes of a segment.

    Attributes:
        category: Anatomical structure or abnormal morphology.
        type: The structure, or the kind of lesion.
        region: Where a lesion lies, if known.
        side: Left or right, for the structure or the region.
    """

    category: "Code"
    type: "Code"
    region: "Code | None" = None
    side: "Code | None" = None


def coding(name: str) -> Coding:
    """Return the codes of a class, which are the same for all of its names."""
    from pydicom.sr.codedict import codes

    spelled = canonical(name)
    words = spelled.split("_")
    for lesion, keyword in _LESIONS.items():
        # kidney_cyst_left is a cyst, and the left kidney is where it lies.
        if lesion in words:
            where = "_".join(word for word in words if word != lesion)
            region, side = _structure(where)
            kind = getattr(codes.SCT, keyword)
            return Coding(codes.cid7150.MorphologicallyAbnormalStructure, kind, region, side if region else None)
    found, side = _structure(spelled)
    general = codes.cid7150.AnatomicalStructure
    return Coding(general, found or general, side=side)


def _structure(spelled: str) -> "tuple[Code | None, Code | None]":
    """Return the code of a structure, if there is one, and its side if the code does not include it."""
    from pydicom.sr.codedict import codes

    if found := _listed(spelled):
        return found, None
    base, _, side = re.sub(r"_\d+$", "", spelled).rpartition("_")  # a rib's number is only in the label
    if side in _SIDES:
        return _listed(base), getattr(codes.SCT, _SIDES[side])
    return _listed(re.sub(r"_\d+$", "", spelled)), None


def _listed(spelled: str) -> "Code | None":
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    if found := _OTHERS.get(spelled):
        value, meaning = found
        return Code(value, "SCT", meaning)
    if keyword := _KEYWORDS.get(spelled):
        return getattr(codes.SCT, keyword)
    vertebra = re.fullmatch(r"vertebrae_([ctl]\d+)", spelled)
    keyword = f"{vertebra[1].upper()}Vertebra" if vertebra else "".join(map(str.capitalize, spelled.split("_")))
    return getattr(codes.cid7192, keyword, None) if keyword else None
