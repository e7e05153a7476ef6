"""Prediction: which model and cases (cases.py), one image (predictor.py), many (pipeline.py), and what makes it lean
(windows.py, export.py). recollect.py adapts BatchNorm to other data.
"""
