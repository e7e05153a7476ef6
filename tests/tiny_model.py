"""The tiny model that tests of the registry, the store and the commands share, as an entry of models.toml."""

STRIDES = [[1, 1, 1], [2, 2, 2], [1, 2, 2]]
TINY = """
[tiny]
title = "a network for tests"
data = "noise"
modality = "CT"
channels = ["CT"]
spacing = [2.0, 1.0, 1.0]
patch_size = [8, 16, 16]
strides = [[1, 1, 1], [2, 2, 2], [1, 2, 2]]
normalization = ["ZScoreNormalization"]
mirror_axes = [0, 1]
classes = ["background", "left", "right"]
[tiny.T]
filename = "tiny.model"
"""
# The same where it can be downloaded from URL, and one that was published without plans.
DOWNLOADABLE = (
    TINY
    + """sources = ["URL/tiny.model"]

[bare]
title = "without plans"
data = "noise"
modality = "MR"
[bare.T]
filename = "tiny.model"
sources = ["URL/tiny.model"]
num_classes = 3
"""
)
