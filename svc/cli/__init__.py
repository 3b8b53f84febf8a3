"""The command `lookback`. Start at `main.py`; each command or group of commands has its file.

Modules import little: what a command needs it imports when it runs, so that help and questions
come at once.
"""
