"""From bytes to sampled frames: decoding on the server, demuxing on the client.

Start at `frames.py` (the data), then `decoder.py` (server) and `sources.py` (client).
Knows no gRPC and no model.
"""
