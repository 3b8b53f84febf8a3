"""Which past units matter to a question: index, selection, fusion of scores.

Start with `index` (the rows and their search), then `selection` (budgets), then `fusion`
(evidence). Knows no model, no gRPC and no store: numpy arrays in, numpy arrays out.
"""
