"""Weights, from a file into a network.

checkpoints.py reads files safely (container.py inspects them first), and pickles.py reads the metadata next to those of
nnU-Net v1. reading.py determines what a file holds and means (naming.py: by its official names; recognition.py: from
the shapes; v1.py: from v1's plans, in v2's terms (v2.py); foreign.py: what else it is). transfer.py loads it into a
network (matching.py: tensor by tensor; heads.py: class by class), and report.py lists what became of every tensor.
"""
