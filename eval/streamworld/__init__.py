"""StreamWorld: a generated world of short events, its trainer, and the built-in model trained on it."""
