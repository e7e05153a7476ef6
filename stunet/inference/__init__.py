"""Prediction: which model and cases (cases.py), and how they become segmentations (predictor.py)."""
