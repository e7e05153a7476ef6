"""Outputs of a finished segmentation: named files, statistics, pictures, reports. Read first: segmentation.py."""
