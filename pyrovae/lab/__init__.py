"""Estimators side by side: compare measures their gradients, race trains with each."""

from pyrovae.lab.comparing import compare
from pyrovae.lab.comparison import Comparison
from pyrovae.lab.comparison_arguments import checked_objectives
from pyrovae.lab.comparison_figures import draw_comparison
from pyrovae.lab.comparison_report import COMPARISON_FILES, write_comparison
from pyrovae.lab.race_report import write_race
from pyrovae.lab.race_result import Race
from pyrovae.lab.race_run import RaceRun
from pyrovae.lab.racing import race

__all__ = [
    "COMPARISON_FILES",
    "Comparison",
    "Race",
    "RaceRun",
    "checked_objectives",
    "compare",
    "draw_comparison",
    "race",
    "write_comparison",
    "write_race",
]
