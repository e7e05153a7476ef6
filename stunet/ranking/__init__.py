"""Which pre-trained network to fine-tune: points.py draws points, judging.py judges scores by what was reached."""
