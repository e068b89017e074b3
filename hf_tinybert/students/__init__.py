"""Students: smaller models of a teacher's architecture, initialised from the teacher."""

from .config import TINYBERT4, TINYBERT6, check_can_initialise
from .cost import FitCost, fit_cost, seconds_per_row
from .create import INITS, check_student, create_student

__all__ = [
    "INITS",
    "TINYBERT4",
    "TINYBERT6",
    "FitCost",
    "check_can_initialise",
    "check_student",
    "create_student",
    "fit_cost",
    "seconds_per_row",
]
