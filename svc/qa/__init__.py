"""The process that answers: reads what the ingest process keeps, and writes nothing.

Start at `process.py` (life of the process), then `service.py` (one call), `answerer.py` (one
question) and `runner.py` (the one thread that touches the model).
"""
