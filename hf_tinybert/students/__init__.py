"""Students: created, and fitted to their teacher."""
