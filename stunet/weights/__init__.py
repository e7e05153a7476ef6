"""Weights, from a file into a network.

checkpoints.py reads files safely (container.py looks at them first), and pickles.py the metadata beside those of
nnU-Net v1; reading.py says what a file holds and means (architecture.py: from the shapes; v1.py: from v1's plans, in
the words of v2.py; foreign.py: what else it is); transfer.py puts it into a network (heads.py: class by class) and
report.py tells what became of every tensor.
"""
