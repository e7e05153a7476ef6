"""Training data: which cases (splits.py), samples of them (loader.py), in which order (batches.py), augmented how.

augmentation.py lists the transforms, each of which has a file of its own.
"""
