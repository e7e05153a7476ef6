"""Pretexts: what a network is trained on without labels. To add one, write a class and its row in methods.py.

base.py states what a pretext is, methods.py lists all, draws.py has the random numbers, views.py crops and turns.
predictive.py, restorative.py, contrastive.py and distillation.py hold the classes, a family each.
"""
