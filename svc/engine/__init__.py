"""The engine: frames to keys and values, questions to answers. Knows models, knows no gRPC.

Start reading at `model.py` (what is loaded), then `attention.py` (how one attention function
serves every family), `encoder.py` (the watching half) and `answer.py` (the answering half).
"""
