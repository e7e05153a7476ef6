"""Which pre-trained network to fine-tune: points, features, scores, and what a ranking was worth.

points.py   draws the points of each case; grid.py finds them in preprocessed cases
sample.py   what scores are computed from: the points, and a candidate's features there
scores/     one file per score, and the table of all
pool.py     the scores of all candidates side by side, with intervals by bootstrap over cases
judging.py  judges scores by what fine-tuning reached; formats.py has the files, verdicts.py the table and plot
"""
