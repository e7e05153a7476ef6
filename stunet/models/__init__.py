"""Published models: which there are, and the ones installed here.

registry.py knows them; store.py installs, finds, exports and checks them (download.py, archive.py); folder.py writes
them as nnU-Net's model folders.
"""
