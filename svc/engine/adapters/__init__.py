"""One small file per model family: only what differs between families."""
