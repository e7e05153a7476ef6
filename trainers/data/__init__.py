"""Training data: draw samples (loader.py), number them (batches.py), augment them (label_rotation.py, mirroring.py)."""
