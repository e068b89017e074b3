"""A student is prepared for its users: report, model card, push to the Hub, load it from there, ONNX, int8.

    python recipes/ship.py --to user/tinybert-tweets                     # the quickstart's student
    python recipes/ship.py --to user/tinybert-sst2 --private --teacher runs/sst2/teacher --student runs/sst2/student \\
        --rows validation.parquet --text sentence --data_name stanfordnlp/sst2

Writes report.md, report.json, plots and the ONNX files to --output_dir, and the card to the student's folder. That
folder is pushed to --to (token: `hf auth login`). Without --to nothing leaves this machine.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_tinybert import DataRecord, StudentReport, export_onnx, extend_card, load_onnx, push_folder, quantize_onnx

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--teacher", default="runs/quickstart/teacher", help="folder or Hub id")
parser.add_argument("--student", type=Path, default=Path("runs/quickstart/student"), help="folder")
parser.add_argument("--rows", default="runs/quickstart/held_out.parquet", help="rows that no model was trained on")
parser.add_argument("--text", nargs="+", default=["text"], help="one or two columns of text")
parser.add_argument("--data_name", default="tweets", help="name of the rows on the card")
parser.add_argument("--to", help="repository, user/name")
parser.add_argument("--private", action="store_true")
parser.add_argument("--min_agreement", type=float, help="lowest share of equal answers of int8 (default: 0.98)")
parser.add_argument("--output_dir", type=Path, default=Path("runs/ship"))
options = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(options.student)
teacher, student = map(AutoModelForSequenceClassification.from_pretrained, (options.teacher, options.student))
rows = Dataset.from_parquet(options.rows).rename_column("label", "labels").select_columns([*options.text, "labels"])
texts = [rows[name][:64] for name in options.text]
tokens = rows.map(lambda row: tokenizer(*(row[name] for name in options.text), truncation=True, max_length=128))


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def logits(model, texts: list) -> torch.Tensor:
    inputs = tokenizer(*texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
    if isinstance(model, torch.nn.Module):
        with torch.inference_mode():
            return model.eval()(**inputs).logits
    return torch.from_numpy(model({name: values.numpy() for name, values in inputs.items()}))


report = StudentReport.measure(teacher, student, tokens, tokenizer, accuracy)
report.save(options.output_dir)
print(report.to_markdown())

card = ModelCard.load(options.student / "README.md")  # the card that the trainer wrote
evaluated_on = DataRecord(name=options.data_name, rows=len(rows))
extend_card(card, student, report, evaluated_on=evaluated_on, repo_id=options.to).save(options.student / "README.md")
if options.to:
    print("Pushed:", push_folder(options.student, options.to, private=options.private).commit_url)
    with tempfile.TemporaryDirectory() as cache:  # as another user loads it, without a cache
        student = AutoModelForSequenceClassification.from_pretrained(options.to, cache_dir=cache)
        tokenizer = AutoTokenizer.from_pretrained(options.to, cache_dir=cache)
    local = AutoModelForSequenceClassification.from_pretrained(options.student)
    print("Pulled by id, logits equal:", torch.equal(logits(student, texts), logits(local, texts)))

onnx = export_onnx(student, tokenizer, options.output_dir, calibration_dataset=tokens)
for path in (onnx, quantize_onnx(options.output_dir, tokens, options.min_agreement)):
    onnx_logits, torch_logits = logits(load_onnx(path), texts), logits(student, texts)
    same = (onnx_logits.argmax(-1) == torch_logits.argmax(-1)).float().mean().item()
    megabytes = path.stat().st_size / 1e6
    print(f"{path}: {megabytes:.1f} MB, {same:.1%} of {len(torch_logits)} predictions equal those of torch")
