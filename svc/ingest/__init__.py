"""The process that watches: takes video in, encodes it, keeps it.

Start at `process.py` (life of the process), then `service.py` (one call), `push.py` (its pipeline)
and `encode_thread.py` (the one thread that touches the model).
"""
