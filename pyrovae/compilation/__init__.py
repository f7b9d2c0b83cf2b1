"""Traces a function once and replays it as machine code. Knows neither a loss nor a VAE."""
