"""Labels: names of classes (names.py), label systems (systems.py), and what each case annotates (annotations.py)."""
