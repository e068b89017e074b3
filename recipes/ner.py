"""A TinyBERT for named entities: teacher fine-tuned on words and tags, intermediate step, prediction step.

    python recipes/ner.py --intermediate_epochs 20 --prediction_epochs 10 --bf16
    python recipes/ner.py --teacher folder/of/bert --data folder      # with train.txt, valid.txt, test.txt
    python recipes/ner.py --teacher folder/of/bert --data folder --smoke

Model: TextBrewer's T4-tiny (README of airaria/TextBrewer, CoNLL-2003), 4 × 312 like TinyBERT4; it learns hidden
states and logits for 30 to 60 epochs at 1e-4. Published: F1 89.1, its teacher, BERT-base-cased, 91.1.
Hardware: one GPU. Not run at full size; computed, 14,041 sentences of 21 tokens: 8e14 FLOP for the 33 epochs above.
Run with --rows 2500 --bf16, MiniLM-L6 (uncased) as the teacher, 3 epochs a step, the best chosen on 1,000 sentences,
31 minutes of training on a busy core: F1 on the test split 63.7, the teacher's 65.5.
A killed run goes on with the same command. Prints and writes OUTPUT_DIR/results.json: shares of 1, entities counted
as by conlleval.
"""

import argparse
import json
from pathlib import Path

import torch
from datasets import DatasetDict, load_dataset

from hf_tinybert import TINYBERT4, TokenClassification, read_conll, task_distillation

FILES = {"train": "train.txt", "validation": "valid.txt", "test": "test.txt"}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--teacher", default="bert-base-cased", help="Hub id or folder; fine-tuned if it has no head")
parser.add_argument("--data", default="eriktks/conll2003", help=f"Hub id, or a folder of {', '.join(FILES.values())}")
parser.add_argument("--revision", default="refs/convert/parquet", help="of a Hub id; this one the Hub itself makes")
parser.add_argument("--tokens", default="tokens", help="column of words")
parser.add_argument("--tags", default="ner_tags", help="column of their tags")
parser.add_argument("--rows", type=int, help="train on this many rows only")
parser.add_argument("--size", type=int, nargs=4, default=[4, 312, 1200, 12], help="layers, width, feed-forward, heads")
parser.add_argument("--student", help="Hub id or folder of a student, instead of creating one of --size")
parser.add_argument("--init", default="teacher", choices=["teacher", "layers", "random"])
parser.add_argument("--max_length", type=int, default=512)
parser.add_argument("--fine_tuning_epochs", type=float, default=3)
parser.add_argument("--intermediate_epochs", type=float, default=3, help="0 leaves the step out")
parser.add_argument("--prediction_epochs", type=float, default=3)
parser.add_argument("--prediction_losses", nargs="+", default=["prediction"])
parser.add_argument("--learning_rate", type=float, default=1e-4, help="of the student's two steps")
parser.add_argument("--batch_size", type=int, default=32)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--output_dir", type=Path, default=Path("runs/ner"))
parser.add_argument("--smoke", action="store_true", help="does it run? few rows, an epoch a step, one layer")
options = parser.parse_args()

if Path(options.data).is_dir():
    data = DatasetDict({split: read_conll(Path(options.data, file)) for split, file in FILES.items()})
else:
    data = load_dataset(options.data, revision=options.revision)
if options.rows:
    data["train"] = data["train"].shuffle(seed=0).select(range(options.rows))
columns = {"tokens": options.tokens, "tags": options.tags, "validation": ("validation", "test")}
task, data = TokenClassification.from_dataset(data, **columns, max_length=options.max_length)
size = dict(zip(TINYBERT4, options.size, strict=True))
epochs = [options.fine_tuning_epochs, options.intermediate_epochs, options.prediction_epochs]
if options.smoke:
    data = DatasetDict({split: rows.select(range(min(16, len(rows)))) for split, rows in data.items()})
    size, epochs = {"num_hidden_layers": 1}, [1, 1, 1]
steps = zip(("fine_tuning", "intermediate", "prediction"), epochs, strict=True)
steps = {name: {"num_train_epochs": number, "learning_rate": options.learning_rate} for name, number in steps}
steps["fine_tuning"]["learning_rate"] = 5e-5
steps["prediction"]["loss_type"] = options.prediction_losses
results = task_distillation(
    task,
    data,
    options.teacher,
    options.output_dir,
    student=options.student or size,
    init=options.init,
    **steps,
    per_device_train_batch_size=options.batch_size,
    seed=options.seed,
    bf16=options.bf16,
    use_cpu=not torch.accelerator.is_available(),
    report_to=[],
)
print(json.dumps(results, indent=1))
