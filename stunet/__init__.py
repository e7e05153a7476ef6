"""STU-Net on nnU-Net v2: plan, train, predict and evaluate scalable 3D segmentation networks.

Read next: networks.py (the network), plans/ (what a run looks like), trainers/ (how it is trained), cli/ (commands).
"""

__version__ = "0.1.0"
