"""Plans, which define a run: the planner, its memory model, and plans derived from plans.

A plan is nnU-Net's plans JSON with one more block, "stunet". Read planner.py for how a dataset becomes a plan, fit.py
for how patch and batch are fitted into memory, derive.py for how a plan becomes another one.
"""
