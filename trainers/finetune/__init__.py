"""Fine-tune: strategies as data (strategies.py), adapters (lora.py), starting from weights (start.py)."""
