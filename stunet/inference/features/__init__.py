"""Features of any encoder: what its stages make of a scan, averaged over the scan, over classes, or at points.

    opening.py  take encoder and plan from any kind of weights
    regions.py  where labels and points are on the network's grid
    model.py    all steps for one image: the Python entry point
    stored.py   a case's features in a file, and all cases in a table

engine/pooling.py averages, and defines what a region's features are; preparation.py preprocesses.
"""
