"""Scores of students before any training: `create_student(init="teacher")` on the validation rows of a GLUE task.

    python recipes/start_scores.py --teacher folder --task sst2 [--data folder] [--rows 600] [--sizes 4/312/1200/12]

A size is layers/hidden size/feed-forward units/attention heads. The calibration rows are the last ones of the shuffled
training rows. The size `teacher` scores the teacher. Results are added to `--output`.
"""

import argparse
import json
from pathlib import Path
from time import perf_counter, process_time

import torch
from transformers import AutoTokenizer, Trainer, TrainingArguments

from hf_tinybert import GLUE, create_student

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--teacher", required=True, help="folder or Hub id of a model that is fine-tuned on the task")
parser.add_argument("--task", required=True, choices=GLUE)
parser.add_argument("--data", help="folder with a folder of parquet files for the task; default the Hub's")
parser.add_argument("--rows", type=int, default=600, help="number of calibration rows")
parser.add_argument("--sizes", nargs="+", default=["4/312/1200/12"])
parser.add_argument("--output", type=Path, default=Path("runs/start_scores.json"))
options = parser.parse_args()

task = GLUE[options.task]
data = task.load(options.data)
tokenizer = AutoTokenizer.from_pretrained(options.teacher)
teacher, _ = task.load_model(options.teacher)
rows = data["train"].shuffle(seed=0)
calibration = task.tokenize(rows.select(range(len(rows) - options.rows, len(rows))), tokenizer)
validation = data[task.validation[0]]
tokens = task.tokenize(validation, tokenizer)
arguments = TrainingArguments("runs", per_device_eval_batch_size=64, report_to=[], disable_tqdm=True)


def record(model, **facts) -> None:
    scorer = task.scorer(validation, tokens)
    trainer = Trainer(model, arguments, data_collator=task.collator(tokenizer), compute_metrics=scorer)
    row = {"teacher": Path(options.teacher).name, "task": options.task, **facts}
    row["score"] = 100 * trainer.evaluate(tokens)["eval_score"]
    results = json.loads(options.output.read_text()) if options.output.exists() else []
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps([*results, row], indent=1))
    print(row, flush=True)


for size in options.sizes:
    if size == "teacher":
        record(teacher)
        continue
    start, cpu = perf_counter(), process_time()
    student = create_student(
        teacher, *map(int, size.split("/")), calibration_dataset=calibration, processing_class=tokenizer
    )
    seconds = {"seconds": round(perf_counter() - start, 1), "cpu seconds": round(process_time() - cpu, 1)}
    record(student, size=size, rows=options.rows, threads=torch.get_num_threads(), **seconds)
