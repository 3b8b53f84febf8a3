"""Which past units matter to a question: index, selection, fusion of scores."""
