"""Token reduction: which tokens of a unit are kept. One policy per file; start with `base`."""
