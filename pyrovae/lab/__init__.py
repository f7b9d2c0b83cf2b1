"""Estimators side by side: compare measures their gradients, race trains with each."""

from pyrovae.lab.comparison import Comparison, compare
from pyrovae.lab.race_result import Race, RaceRun
from pyrovae.lab.racing import race

__all__ = [
    "Comparison",
    "Race",
    "RaceRun",
    "compare",
    "race",
]
