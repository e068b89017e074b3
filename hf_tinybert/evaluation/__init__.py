"""Teacher beside student: measured, compared, drawn."""
