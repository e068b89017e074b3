"""One bar for each training or evaluation, with its name and its last loss or score."""

from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.trainer_utils import has_length


class NamedBar(ProgressCallback):
    """Transformers' progress bar with a name; losses and scores stand beside it instead of in lines above it.

    Args:
        name: The name.
        leave: Whether the bar stays when it is complete; default True.
    """

    def __init__(self, name: str, leave: bool = True):
        super().__init__()
        self.name, self.leave = name, leave
        self.shown: dict[str, str] = {}
        self.scored_batches = 0

    def on_train_begin(self, args, state, control, **kwargs):
        """Trainer's event."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.name)
            if state.global_step:  # of a run that continues
                self.training_bar.update(state.global_step)
                self.current_step = state.global_step

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        """Trainer's event."""
        if not state.is_world_process_zero:
            return
        if self.training_bar is None:
            super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)
            if self.prediction_bar is not None:
                self.prediction_bar.leave = self.leave
                self.prediction_bar.set_description(self.name, refresh=False)
            return
        self.scored_batches += 1
        total = f"/{len(eval_dataloader)}" if has_length(eval_dataloader) else ""
        self.training_bar.set_postfix_str(f"scoring {self.scored_batches}{total}")

    def on_evaluate(self, args, state, control, **kwargs):
        """Trainer's event."""
        super().on_evaluate(args, state, control, **kwargs)
        self.scored_batches = 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Trainer's event."""
        if self.training_bar is not None:
            for name in ("loss", "eval_score"):
                if name in logs:
                    self.shown[name.removeprefix("eval_")] = f"{logs[name]:.3g}"
            self.training_bar.set_postfix(self.shown)


def name_bar(trainer: Trainer, name: str, leave: bool = True) -> None:
    """Replace the bar of a trainer by one with a name; with `disable_tqdm` there is none, and nothing is printed.

    Args:
        trainer: The trainer.
        name: The name.
        leave: Whether the bar stays when it is complete; default True.
    """
    if trainer.args.disable_tqdm:
        trainer.pop_callback(PrinterCallback)
    elif trainer.pop_callback(ProgressCallback) is not None:  # notebooks have another one
        trainer.add_callback(NamedBar(name, leave))
