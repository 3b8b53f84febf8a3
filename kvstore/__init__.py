"""The store of keys and values: one append-only log per session, and a hot tail in shared memory.

Start reading at `writer.SessionWriter` and `reader.SessionReader`; `format` describes the files.
Knows no model and no network.
"""
