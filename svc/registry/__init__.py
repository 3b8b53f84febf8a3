"""The control plane over Redis: who owns which session, where to find it, how far it has come.

Metadata only: the files are the truth, and an empty Redis is filled from them again. Start reading
at `leases.py` (who may write) and `kept.py` (how an owner knows that it still may). Knows no
store, no model and no gRPC.
"""
