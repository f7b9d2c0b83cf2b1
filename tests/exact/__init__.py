"""Programs whose evidence, bounds and gradients are known exactly, in float64, each beside its formulas."""
