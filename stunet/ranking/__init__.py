"""Which pre-trained network to fine-tune: points, features, scores, and what a ranking was worth.

cases.py       chooses cases; points.py draws the points of each, and grid.py finds them in preprocessed cases
reading.py     reads a candidate's features there, which bank.py keeps; candidates.py has what else is known of it
sample.py      what scores are computed from: the points, and a candidate's features there
scores/        one file per score, and the table of all
pool.py        the scores of all candidates side by side, with intervals by bootstrap over cases
outcome.py     the ranking, rank.json, and what best-of takes of it; tables.py has the table and plot
judging.py     judges scores by what fine-tuning reached; formats.py has the files, verdicts.py the table and plot
"""
