"""Prediction: models and input cases (cases.py), one image (predictor.py), many images (pipeline.py), and the code that
keeps memory use low (engine/). recollect.py adapts BatchNorm to other data.
"""
