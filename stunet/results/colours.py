"""Assign each class a colour, which is the same in every picture and file, whatever else was segmented.

Common structures have the colours of anatomy atlases: arteries red, veins blue, the gallbladder green. All others get
a hue from their name; numbered ones (ribs, vertebrae) rotate it by the golden angle, so that neighbours differ.
"""

import colorsys
import re
import zlib
from functools import cache

from stunet.labels.names import canonical

GOLDEN = (5**0.5 - 1) / 2  # of a turn: multiples of this angle never come close to each other
RIGHT = 0.68  # brightness of the right structure of a pair, relative to the left
RGB = tuple[int, int, int]

_PARTS = re.compile(r"(?P<base>.*?)(?:_(?P<side>left|right))?(?:_(?P<level>[ctls])?(?P<number>\d+))?")
_LEVELS = {"c": 0, "t": 7, "l": 19, "s": 24}  # number of vertebrae above the first of each level

# Our own choice. Spinal cord, thyroid, gallbladder and veins follow 3D Slicer's GenericAnatomyColors; most of its other
# organs have nearly the same flesh tone and cannot be told apart on a slice.
_COMMON: dict[str, RGB] = {
    "adrenal_gland": (255, 235, 59),
    "aorta": (229, 28, 35),
    "atrial_appendage": (255, 128, 171),
    "brachiocephalic_trunk": (255, 112, 67),
    "brachiocephalic_vein": (92, 107, 192),
    "brain": (250, 250, 225),
    "colon": (161, 106, 62),
    "common_carotid_artery": (255, 82, 82),
    "cartilage_costal": (183, 214, 211),
    "duodenum": (174, 234, 150),
    "esophagus": (206, 147, 255),
    "gallbladder": (0, 165, 45),
    "heart": (210, 60, 90),
    "heart_atrium_left": (255, 99, 132),
    "heart_atrium_right": (129, 60, 170),
    "heart_myocardium": (176, 48, 72),
    "heart_ventricle_left": (255, 46, 60),
    "heart_ventricle_right": (84, 78, 205),
    "iliac_artery": (244, 81, 30),
    "iliac_vena": (33, 150, 243),
    "inferior_vena_cava": (0, 90, 206),
    "kidney": (255, 143, 20),
    "kidney_cyst": (205, 205, 100),
    "liver": (196, 88, 60),
    "lung": (120, 205, 225),
    "lung_lower_lobe_left": (41, 128, 185),
    "lung_lower_lobe_right": (0, 131, 116),
    "lung_middle_lobe_right": (86, 201, 166),
    "lung_upper_lobe_left": (120, 205, 225),
    "lung_upper_lobe_right": (178, 235, 208),
    "pancreas": (255, 213, 120),
    "portal_vein_and_splenic_vein": (0, 188, 212),
    "prostate": (230, 158, 190),
    "pulmonary_artery": (83, 109, 254),
    "pulmonary_vein": (255, 138, 128),
    "skull": (241, 226, 180),
    "small_bowel": (255, 183, 150),
    "spinal_cord": (244, 214, 49),
    "spleen": (142, 68, 193),
    "sternum": (244, 217, 154),
    "stomach": (240, 98, 190),
    "subclavian_artery": (216, 67, 60),
    "superior_vena_cava": (64, 140, 255),
    "thyroid_gland": (62, 162, 114),
    "trachea": (182, 228, 255),
    "urinary_bladder": (156, 204, 40),
}


@cache
def colour(name: str) -> RGB:
    """Return red, green and blue of a class, 0 to 255; all names of a class (labels/names.py) have the same colour."""
    spelled = canonical(name)
    if spelled in _COMMON:
        return _COMMON[spelled]
    parts = _PARTS.fullmatch(spelled)
    if parts is None:  # a name with line breaks: the first group takes anything else, and the others are optional
        return _from_name(spelled, 0)
    rgb = _COMMON.get(parts["base"]) or _from_name(parts["base"], _position(parts["level"], parts["number"]))
    return (round(rgb[0] * RIGHT), round(rgb[1] * RIGHT), round(rgb[2] * RIGHT)) if parts["side"] == "right" else rgb


def unit_colour(name: str) -> tuple[float, float, float]:
    """Return the same colour from 0 to 1, as in file headers and matplotlib."""
    red, green, blue = colour(name)
    return red / 255, green / 255, blue / 255


def _position(level: str | None, number: str | None) -> int:
    return _LEVELS.get(level or "", 0) + int(number or 0)


def _from_name(base: str, position: int) -> RGB:
    """Return a bright colour whose hue, saturation and value come from the bits of a checksum."""
    bits = zlib.crc32(base.encode())
    hue = ((bits & 0xFFFF) / 0x10000 + position * GOLDEN) % 1
    saturation, value = (0.45, 0.65, 0.85)[(bits >> 16) % 3], (0.75, 0.88, 1.0)[(bits >> 20) % 3]
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue
