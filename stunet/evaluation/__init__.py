"""How good predictions are: metrics.py defines the numbers, segmentations.py reads files, folders.py compares."""
