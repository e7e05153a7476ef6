"""How a network is trained: one class per procedure, with everything else (size, epochs, rates) in the plan.

base.py reads the plan's values, saves, resumes and stops; supervised.py is the procedure; batches.py the data's order;
launch.py starts one or several processes. nnU-Net's own commands find the classes through stunet/nnunet_ext.
"""

from stunet.trainers.supervised import STUNetTrainer

__all__ = ["STUNetTrainer"]
