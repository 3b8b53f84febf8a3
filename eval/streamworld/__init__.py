"""StreamWorld: a generated world of short events, and the trainer of the built-in model."""
