"""Train one network on cases that annotate different classes. Read trainer.py first."""
