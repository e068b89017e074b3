"""The metrics of a model on the validation splits of a task."""

from functools import partial

import datasets
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from ..sound_caches import with_sound_caches
from ..tasks import Task
from .progress import name_bar


def evaluate_task(
    model: PreTrainedModel,
    task: Task,
    data: datasets.DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    args: TrainingArguments,
) -> dict[str, dict[str, float]]:
    """Score a model on each validation split of a task.

    Args:
        model: The model.
        task: The task.
        data: Its rows, by split.
        tokenizer: The tokenizer of the model.
        args: Batch size and precision of the evaluation, with the task's `evaluation_arguments`.

    Returns:
        Split → metric → value.
    """
    return {split: _evaluate_split(model, task, data, split, tokenizer, args) for split in task.validation}


def _evaluate_split(
    model: PreTrainedModel,
    task: Task,
    data: datasets.DatasetDict,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    args: TrainingArguments,
) -> dict[str, float]:
    tokens = with_sound_caches(data[split], partial(task.tokenize, data[split], tokenizer))
    score, scores = task.scorer(data[split], tokens), {}

    def record(prediction: EvalPrediction) -> dict[str, float]:
        scores.update(score(prediction))
        return scores

    trainer = Trainer(
        model,
        args,
        data_collator=task.collator(tokenizer),
        eval_dataset=tokens,
        processing_class=tokenizer,
        compute_metrics=record,
    )
    name_bar(trainer, f"Scoring {split}", leave=False)
    trainer.evaluate()
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # or bf16 stays around its forward
    return scores
