"""Which teacher layer teaches which student layer: g(m) of the TinyBERT paper (section 3.1), 1-based."""

from collections.abc import Sequence
from math import ceil

LayerMapping = list[tuple[int, int]]
STRATEGIES = ("uniform", "skip", "top", "bottom")


def map_layers(
    strategy: str | Sequence[int] | Sequence[tuple[int, int]], student_layers: int, teacher_layers: int
) -> LayerMapping:
    """Pairs (m, g(m)) of student layer m and the teacher layer that it learns from, both counted from 1.

    - `"uniform"`: g(m) = ⌈m·N/M⌉, which is m·N/M of the paper where M divides N: 4 of 12 → 3, 6, 9, 12.
    - `"skip"`: `"uniform"` without its last pair, as BERT-PKD-Skip (arXiv 1908.09355): 6 of 12 → 2, 4, 6, 8, 10. The
      last student layer is left to the prediction loss.
    - `"top"`: g(m) = m + N − M. `"bottom"`: g(m) = m (paper, table 4).
    - explicit: one teacher layer a student layer, `[3, 6, 9, 12]` or `"3,6,9,12"`, or the pairs themselves.

    Layer 0 (embeddings) and the prediction layer are not part of a mapping: their losses know their layers.
    Raises ValueError for an unknown strategy, a layer out of range, a student deeper than its teacher, or one layer
    and `"skip"`.
    """
    if isinstance(strategy, str) and strategy in STRATEGIES:
        if student_layers > teacher_layers:
            raise ValueError(
                f"The student has {student_layers} layers, the teacher {teacher_layers}: layer_mapping='{strategy}' "
                "needs a student that is not deeper. Lower num_hidden_layers of the student, or pass explicit pairs."
            )
        if strategy == "skip" and student_layers == 1:
            raise ValueError("layer_mapping='skip' leaves out the only layer of the student: take 'top'.")
        uniform = [ceil(m * teacher_layers / student_layers) for m in range(1, student_layers + 1)]
        teachers = {
            "uniform": uniform,
            "skip": uniform[:-1],
            "top": [m + teacher_layers - student_layers for m in range(1, student_layers + 1)],
            "bottom": list(range(1, student_layers + 1)),
        }[strategy]
        return list(enumerate(teachers, start=1))
    return _explicit_pairs(strategy, student_layers, teacher_layers)


def _explicit_pairs(strategy, student_layers: int, teacher_layers: int) -> LayerMapping:
    names = ", ".join(map(repr, STRATEGIES))
    expected = f"{names}, {student_layers} teacher layers or pairs (student layer, teacher layer)"
    try:
        entries = [int(entry) for entry in strategy.split(",")] if isinstance(strategy, str) else list(strategy)
        if entries and all(isinstance(entry, int) for entry in entries):
            if len(entries) != student_layers:
                raise ValueError
            entries = list(enumerate(entries, start=1))
        pairs = [(int(student), int(teacher)) for student, teacher in entries]
        if not pairs:
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"layer_mapping={strategy!r} is not understood: give {expected}.") from None
    for student, teacher in pairs:
        if not (1 <= student <= student_layers and 1 <= teacher <= teacher_layers):
            raise ValueError(
                f"layer_mapping has the pair ({student}, {teacher}), but the student has layers 1 to {student_layers} "
                f"and the teacher 1 to {teacher_layers}."
            )
    return pairs
