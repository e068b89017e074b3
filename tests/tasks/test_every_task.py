"""What every kind of task keeps, found by walking the subclasses of `Task`."""

import pytest
import torch
from conftest import WORDS, bert_config, word_tokenizer
from datasets import Dataset, DatasetDict
from short_runs import QUICK
from transformers import Trainer, TrainingArguments

from hf_tinybert import (
    MultipleChoice,
    QuestionAnswering,
    Task,
    TextClassification,
    TokenClassification,
    UnlabelledText,
)
from hf_tinybert.models.families import subclasses
from hf_tinybert.models.prediction_heads import prediction_head_of

KINDS = [kind for kind in subclasses(Task) if kind.__module__.startswith("hf_tinybert.")]
TEXTS = [f"the {WORDS[i]} {WORDS[-2 - i]} is {WORDS[2 * i]}" for i in range(6)]
# A kind of task without an example here fails.
EXAMPLES = {
    TextClassification: (
        TextClassification("task", ("text",), ("no", "yes")),
        {"text": TEXTS, "label": [0, 1] * 3},
    ),
    UnlabelledText: (
        UnlabelledText("task", ("text",), ("no", "yes")),
        {"text": TEXTS, "label": [0, 1] * 3},
    ),
    TokenClassification: (
        TokenClassification("task", ("tokens",), ("O", "B-A", "I-A")),
        {"tokens": [text.split() for text in TEXTS], "ner_tags": [[0, 1, 2, 0, 0]] * 6},
    ),
    QuestionAnswering: (
        QuestionAnswering("task"),
        {
            "id": [*map(str, range(6))],
            "question": ["the film"] * 6,
            "context": TEXTS,
            "answers": [{"text": ["is"], "answer_start": [text.index(" is ") + 1]} for text in TEXTS],
        },
    ),
    MultipleChoice: (
        MultipleChoice("task", ("context",)),
        {"context": TEXTS, "choices": [TEXTS[:3]] * 6, "label": [0, 1, 2] * 2},
    ),
}


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def example(request):
    task, columns = EXAMPLES[request.param]
    return task, Dataset.from_dict(columns)


@pytest.fixture
def tokenizer(tmp_path):
    return word_tokenizer(tmp_path)


@pytest.fixture
def model(example, tokenizer):
    head = {"id2label": None, "label2id": None, **example[0].head}
    torch.manual_seed(0)
    return example[0].auto_class.from_config(bert_config(2, 16, vocab_size=len(tokenizer), **head))


def test_rows_without_a_column_or_without_rows_are_refused(example):
    task, rows = example
    task.check(DatasetDict(train=rows))
    for column in task.columns:
        with pytest.raises(ValueError, match=column):
            task.check(DatasetDict(train=rows.remove_columns(column)))
    with pytest.raises(ValueError, match="lacks rows"):
        task.check(DatasetDict(train=rows.select([])))


def test_tokens_have_the_labels_that_the_prediction_head_takes(example, tokenizer, model):
    task, rows = example
    tokens = task.tokenize(rows, tokenizer)
    labels = prediction_head_of(model).label_names
    assert {"input_ids", "attention_mask", *labels} <= {*tokens.column_names}
    features = tokens.select_columns([*tokenizer.model_input_names, *labels]).to_list()
    batch = task.collator(tokenizer)(features)
    assert model(**batch).loss.isfinite()


def test_the_score_is_that_of_an_evaluation_by_trainer_in_any_order(example, tokenizer, model, tmp_path):
    task, rows = example
    tokens, scores = task.tokenize(rows, tokenizer), []
    names = ("num_train_epochs", "per_device_train_batch_size", "logging_steps")
    quick = {name: value for name, value in QUICK.items() if name not in names}
    for strategy in ("sequential", "group_by_length"):
        args = TrainingArguments(str(tmp_path), **quick, **task.evaluation_arguments, train_sampling_strategy=strategy)
        trainer = Trainer(
            model,
            args,
            task.collator(tokenizer),
            eval_dataset=tokens,
            processing_class=tokenizer,
            compute_metrics=task.scorer(rows, tokens),
        )
        metrics = trainer.evaluate()
        scores.append({name: metrics[f"eval_{name}"] for name in ("score", *task.selected_by)})
    assert scores[0] == scores[1]
    assert scores[0]["score"] == pytest.approx(
        sum(scores[0][name] for name in task.selected_by) / len(task.selected_by)
    )


def test_other_metrics_select_the_model(example, tokenizer, model, tmp_path):
    task, rows = example
    tokens = task.tokenize(rows, tokenizer)
    needed = {"report_to": [], "disable_tqdm": True, "use_cpu": True, **task.evaluation_arguments}
    for name in task.metric_names:
        trainer = Trainer(
            model,
            TrainingArguments(str(tmp_path), **needed),
            task.collator(tokenizer),
            eval_dataset=tokens,
            processing_class=tokenizer,
            compute_metrics=task.select_by(name).scorer(rows, tokens),
        )
        metrics = trainer.evaluate()
        assert metrics["eval_score"] == metrics[f"eval_{name}"]
    with pytest.raises(ValueError, match=task.metric_names[0]):
        task.select_by("bleu")
