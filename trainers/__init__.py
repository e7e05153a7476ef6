"""Training: one class per procedure. Everything else (size, epochs, learning rates) is in the plan.

    nnUNetTrainer -> BaseTrainer (trainer.py)       values of the plan, the hooks of nnU-Net's, stopping and continuing
        -> STUNetTrainer (supervised.py)            complete labels, mirroring of left and right
        -> STUNetPartialTrainer (partial/)          cases that annotate different classes

    steps.py         one step: micro-batches, precision, several processes
    checkpoint.py    what a checkpoint holds, and whether a training may continue from it
    finetune/        pre-trained weights and strategies; start.py loads the weights before the first epoch
    data/            which samples, in which order, augmented how; augmentation.py says how to add an augmentation
    distributed/     the processes of one training, and how they share a network
    validation.py    the fold's validation cases, predicted and compared at the end
    lookup.py        the class that -tr names, without importing any other
    progress.py, plots.py, metrics.py    what a listener hears, progress.png, voxel counts

stunet/runs/launch.py starts a training in one or several processes. nnU-Net's own commands find the classes through
stunet/nnunet_ext.
"""
