"""Hours of stream through a store of half the size that they need, beside one that keeps all."""
