"""Estimates of log p(x) with their errors, and diagnoses of a trained pair."""
