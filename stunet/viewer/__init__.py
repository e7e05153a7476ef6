"""Look at segmentations in a browser: image, prediction, reference and where the two differ.

cases.py finds the files, classes.py names their labels, volumes.py reads any format onto one grid, loading.py makes of
a case what the page needs, page.py is the page, server.py gives it to a browser on this machine. assets/ holds the
page's own files and NiiVue, which draws.
Read next: loading.py.
"""
