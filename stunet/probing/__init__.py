"""Whether features say something about their cases: linear models of a target, with honest validation.

tables.py  read CSV files: targets, points
probe.py   fit, validate, and compare with chance
"""
