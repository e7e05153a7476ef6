"""The commands, one file each: they turn arguments into requests of runs/, and show. common.py has what they share."""
