"""A comparison of pre-trained weights: arms.py reads it from a file, runs.py trains it, summary.py compares."""
