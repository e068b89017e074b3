"""A whole pipeline on an accelerator such as a GPU."""

import torch
from conftest import needs_accelerator, word_tokenizer
from short_runs import SIZE
from toy_runs import save_classifier, sentences
from transformers import BertForSequenceClassification

from hf_tinybert import GLUE, StudentReport, task_distillation


@needs_accelerator
def test_a_whole_run_and_its_report(tmp_path):
    data, tokenizer = sentences(tmp_path), word_tokenizer(tmp_path)
    save_classifier(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    options = {"max_steps": 4, "report_to": [], "disable_tqdm": True, "per_device_train_batch_size": 4}
    results = task_distillation(GLUE["sst2"], data, tmp_path / "teacher", tmp_path / "run", student=SIZE, **options)
    assert "student" in results
    teacher, student = (
        BertForSequenceClassification.from_pretrained(folder).to(torch.accelerator.current_accelerator())
        for folder in (tmp_path / "teacher", tmp_path / "run/student")
    )
    task, validation = GLUE["sst2"], data["validation"]
    tokens = task.tokenize(validation, tokenizer)
    report = StudentReport.measure(
        teacher, student, tokens, tokenizer, task.scorer(validation, tokens), engines=["torch"]
    )
    assert "student" in report.to_markdown().lower()
