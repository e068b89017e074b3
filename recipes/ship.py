"""A student is prepared for its users: report, model card, every format, push to the Hub, load it from there.

    python recipes/ship.py --to user/tinybert-tweets                     # the quickstart's student
    python recipes/ship.py --to user/tinybert-sst2 --private --teacher runs/sst2/teacher --student runs/sst2/student \\
        --rows validation.parquet --text sentence --data_name stanfordnlp/sst2

Writes report.md, report.json and plots to --output_dir, and to its subfolder `student` the student in every format,
with the card. That folder is pushed to --to (token: `hf auth login`). Without --to nothing leaves this machine.
"""

import argparse
from pathlib import Path

from datasets import Dataset
from huggingface_hub import ModelCard, snapshot_download
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hf_tinybert import DataRecord, StudentReport, TextClassification, extend_card, push_folder, ship_student

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
task = TextClassification(options.data_name, tuple(options.text), tuple(student.config.id2label.values()))
rows = Dataset.from_parquet(options.rows)
tokens = task.tokenize(rows, tokenizer)

report = StudentReport.measure(teacher, student, tokens, tokenizer, task.scorer(rows, tokens))
report.save(options.output_dir)
print(report.to_markdown())

card = ModelCard.load(options.student / "README.md")  # the card that the trainer wrote
evaluated_on = DataRecord(name=options.data_name, rows=len(rows))
extend_card(card, student, report, evaluated_on=evaluated_on, repo_id=options.to).save(options.student / "README.md")

folder = options.output_dir / "student"
shipment = ship_student(options.student, folder, task, rows, min_agreement=options.min_agreement, hub_id=options.to)
for file in shipment.files:
    print(" | ".join(file.cells))
if options.to:
    print("Pushed:", push_folder(folder, options.to, private=options.private).commit_url)
    pairs = zip(*(rows[:64][name] for name in options.text), strict=True)
    texts = [dict(zip(("text", "text_pair"), pair, strict=False)) for pair in pairs]
    local, pulled = (
        pipeline("text-classification", str(source)) for source in (folder, snapshot_download(options.to))
    )
    print("Pulled by id, probabilities equal:", local(texts) == pulled(texts))
