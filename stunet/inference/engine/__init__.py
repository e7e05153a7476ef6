"""From a preprocessed image to labels on the image's own grid:

    segmenter.py      the entry: a preprocessed image in, labels out
    windows.py        run the network window by window; yield logits a slab of planes at a time
    pooling.py        from the features of windows to means over regions
    optimized.py      the form and precision of the network that are fastest on a device
    export.py         logits to labels; interpolates only where labels may change
    interpolation.py  positions of one grid on another
    probabilities.py  probabilities that are too large for memory
    confidence.py     how sure the network is of its labels
    memory.py         how much memory a case needs, and what runs at a time

The logits of a whole image are never held, so memory does not grow with classes times voxels.
"""
