"""A (model, guide) pair: runs it, reads its sites, checks it and returns its log-weights. Knows no VAE."""
