"""Evaluation of predictions: metrics.py defines the metrics, segmentations.py reads files, folders.py compares."""
