"""The commands, one file each; common.py holds what they share."""
