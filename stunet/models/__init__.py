"""Published models: which there are, and the ones installed here.

registry.py knows them; store.py installs and finds them (download.py, archive.py); folder.py writes, exports and checks
them as nnU-Net's model folders, with a record of their origin (record.py).
"""
