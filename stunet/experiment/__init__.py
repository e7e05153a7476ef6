"""Compare pre-trained weights: arms.py reads the comparison from a file, runs.py trains it, summary.py compares."""
