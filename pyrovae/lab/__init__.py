"""Estimators side by side: compare measures their gradients, race trains with each."""
