"""Preprocess a dataset (dataset.py), in several processes (worker.py), case by case (case.py); stored.py reads it."""
