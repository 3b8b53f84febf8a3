"""Blocks of attention keys and values: formats, hot tail, durability, recovery."""
