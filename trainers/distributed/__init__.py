"""Train in several processes: start them (group.py), and share the network and its gradients (sharding.py)."""
