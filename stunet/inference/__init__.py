"""Prediction with trained models. The files in the order in which an image passes them:

    model.py             open a model folder
    cases.py             find the input images
    lists.py             the same from a list of images in a text or CSV file
    orientation.py       how the model's training images lay
    reading.py           read a case's files, check them, turn them to the model's orientation
    inputs.py            the same for images in memory, of any kind
    v1_preprocessing.py  preprocess as nnU-Net v1 did
    network.py           build the network of a model's plans
    preparation.py       read and preprocess an image as the plans say
    predictor.py         all steps for one image, in memory: the Python entry point
    pipeline.py          many images into a folder, with reading, network and writing in parallel
    products.py          which files a case gets, and writing them
    staging.py           temporary names of a case's files, until all are there
    records.py           what made the results, and whether results that are there were made from the same
    index.py             the same for very many cases: logs of what is done, and tables of it
    failures.py          errors as the user sees them
    recollect.py         adapt BatchNorm statistics to other data

engine/ computes: from a preprocessed array to labels, with little memory. It imports nothing from the files above.
"""
