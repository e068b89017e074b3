"""Which teacher layer teaches which student layer: g(m) of the TinyBERT paper (section 3.1), counted from 1."""

from collections.abc import Sequence
from math import ceil

LayerMapping = list[tuple[int, int]]
STRATEGIES = ("uniform", "skip", "top", "bottom")


def map_layers(
    strategy: str | Sequence[int] | Sequence[tuple[int, int]], student_layers: int, teacher_layers: int
) -> LayerMapping:
    """The teacher layer g(m) that each student layer m learns from, with M student and N teacher layers.

    | strategy | mapping |
    |---|---|
    | `"uniform"` | g(m) = ⌈m·N/M⌉, the paper's m·N/M if M divides N: 4 of 12 → 3, 6, 9, 12 |
    | `"skip"` | `"uniform"` without its last pair (BERT-PKD-Skip, arXiv:1908.09355): 6 of 12 → 2, 4, 6, 8, 10 |
    | `"top"` | g(m) = m + N − M |
    | `"bottom"` | g(m) = m (table 4 of the paper) |
    | `[3, 6, 9, 12]` or `"3,6,9,12"` | one teacher layer for each student layer |
    | `[(4, 12), (1, 1)]` | the pairs themselves |

    With `"skip"` the last student layer learns from the prediction loss alone. Layer 0 (the embeddings) and the
    prediction layer are not part of a mapping, because their losses know their layers.

    Args:
        strategy: A name, teacher layers or pairs, as in the table.
        student_layers: M.
        teacher_layers: N.

    Returns:
        Pairs (m, g(m)), both counted from 1.

    Raises:
        ValueError: If the strategy is unknown, if a layer is out of range, if a named strategy is given a student
            deeper than its teacher, or `"skip"` a student of one layer.
    """
    if not (isinstance(strategy, str) and strategy in STRATEGIES):
        return _explicit_pairs(strategy, student_layers, teacher_layers)
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


def _explicit_pairs(
    mapping: str | Sequence[int] | Sequence[tuple[int, int]], student_layers: int, teacher_layers: int
) -> LayerMapping:
    names = ", ".join(map(repr, STRATEGIES))
    misunderstood = ValueError(
        f"layer_mapping={mapping!r} is not understood: give {names}, {student_layers} teacher layers or pairs "
        "(student layer, teacher layer)."
    )
    try:
        entries = [int(entry) for entry in mapping.split(",")] if isinstance(mapping, str) else list(mapping)
        one_a_layer = all(isinstance(entry, int) for entry in entries)
        pairs = [(int(m), int(g)) for m, g in (enumerate(entries, start=1) if one_a_layer else entries)]
    except (TypeError, ValueError):
        raise misunderstood from None
    if not pairs or (one_a_layer and len(pairs) != student_layers):
        raise misunderstood
    for student, teacher in pairs:
        if not (1 <= student <= student_layers and 1 <= teacher <= teacher_layers):
            raise ValueError(
                f"layer_mapping has the pair ({student}, {teacher}), but the student has layers 1 to {student_layers} "
                f"and the teacher 1 to {teacher_layers}."
            )
    return pairs
