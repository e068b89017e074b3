"""Early stopping of a phase, which a run that is continued keeps to."""

from dataclasses import dataclass
from pathlib import Path

from transformers import EarlyStoppingCallback, TrainerState

from ..training.trainer import DistillationTrainer


@dataclass(frozen=True)
class EarlyStopping:
    """The arguments of transformers' `EarlyStoppingCallback`.

    Args:
        patience: Evaluations without an improvement after which training stops.
        threshold: What the score must improve by; default 0.
    """

    patience: int
    threshold: float = 0.0

    def __post_init__(self):
        if self.patience < 1:
            raise ValueError(f"early_stopping_patience={self.patience}: give 1 or more evaluations.")


def add_early_stopping(trainer: DistillationTrainer, stopping: EarlyStopping, checkpoint: str | None) -> None:
    """Let a trainer stop early, also one that continues from a checkpoint.

    Args:
        trainer: The trainer.
        stopping: When it stops.
        checkpoint: The checkpoint that it continues from. If training had stopped there, no step is added.
    """
    trainer.args.restore_callback_states_from_checkpoint = True  # or the evaluations before it would not count
    trainer.add_callback(EarlyStoppingCallback(stopping.patience, stopping.threshold))
    if checkpoint is None:
        return
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    if state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]:
        trainer.args.max_steps = state.global_step
