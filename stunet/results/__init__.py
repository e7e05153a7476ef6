"""What a finished segmentation becomes: named files, statistics, pictures, reports. Start at segmentation.py."""
