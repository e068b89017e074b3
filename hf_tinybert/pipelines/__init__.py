"""Whole runs: distillation for a task, general distillation, and the doctor that looks at a run before it starts."""
