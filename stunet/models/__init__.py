"""Pre-trained models: those that were published, and those installed here.

registry.py lists them; store.py installs and finds them (download.py, archive.py); folder.py writes, exports and checks
them as nnU-Net model folders, with a record of their origin (record.py).
"""
