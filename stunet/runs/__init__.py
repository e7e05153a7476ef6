"""Runs: what a command does once its arguments are read. Check that a training can start, and start it."""
