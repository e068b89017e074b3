"""Students: smaller models of a teacher's architecture, initialised from the teacher."""

from .config import TINYBERT4, TINYBERT6, check_can_initialise
from .create import INITS, create_student

__all__ = ["INITS", "TINYBERT4", "TINYBERT6", "check_can_initialise", "create_student"]
