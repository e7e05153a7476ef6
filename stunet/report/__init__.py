"""Reports: one self-contained HTML file each, which a browser shows without asking anybody for anything.

blocks.py has what a page is made of, page.py writes it, figures.py and plots.py draw. What a report says is in
training.py (a fold, a model) and comparison.py (predictions against references).
"""
