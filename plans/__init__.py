"""What a run looks like: the planner, its memory model, and plans made from plans.

A plan is nnU-Net's plans JSON with one more block, "stunet". Read planner.py for how a dataset becomes a plan, fit.py
for how patch and batch are fitted into the memory, derive.py for how a plan becomes another one.
"""
