"""Use cases: plan, train, predict, evaluate, each a request and a result; the command line and Python call the same.

training.py, planning.py, prediction.py and evaluation.py have the requests and what is done with them; listener.py is
how they report; api.py makes them the Python API; launch.py starts the processes of a training.
"""
