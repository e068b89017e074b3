"""A TinyBERT for named entities: teacher fine-tuned on words and tags, intermediate phase, prediction phase.

    python recipes/ner.py --intermediate_epochs 20 --prediction_epochs 10 --bf16
    python recipes/ner.py --teacher folder/of/bert --data folder      # with train.txt, valid.txt, test.txt
    python recipes/ner.py --teacher folder/of/bert --data folder --smoke

Model: TextBrewer's T4-tiny (README of airaria/TextBrewer, CoNLL-2003), 4 × 312 like TinyBERT4. It learns hidden states
and logits for 30 to 60 epochs at 1e-4. Published: F1 89.1; its teacher, BERT-base-cased, 91.1.
Hardware: one GPU. Not run at full size. Computed: 14,041 sentences of 21 tokens are 8e14 FLOP for the 33 epochs above.
Measured with --rows 2500 --bf16, MiniLM-L6 (uncased) as the teacher, 3 epochs a phase, the best student chosen on
1,000 sentences, 31 minutes of training on a busy core: F1 63.7 on the test split; the teacher has 65.5. A run that was
killed continues with the same command. Prints and writes OUTPUT_DIR/results.json; scores are shares of 1, and entities
are counted as by conlleval.
"""

import argparse
import json
from pathlib import Path

import torch
from datasets import DatasetDict, load_dataset

from hf_tinybert import TINYBERT4, TokenClassification, read_conll, task_distillation

FILES = {"train": "train.txt", "validation": "valid.txt", "test": "test.txt"}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--teacher", default="bert-base-cased", help="Hub id or folder; fine-tuned if it has no such head")
parser.add_argument("--data", default="eriktks/conll2003", help=f"Hub id, or a folder of {', '.join(FILES.values())}")
parser.add_argument("--revision", default="refs/convert/parquet", help="revision of a Hub id; the Hub makes this one")
parser.add_argument("--tokens", default="tokens", help="column of the words")
parser.add_argument("--tags", default="ner_tags", help="column of the tags")
parser.add_argument("--rows", type=int, help="number of training rows; default all")
parser.add_argument("--size", type=int, nargs=4, default=[4, 312, 1200, 12], help="layers, width, feed-forward, heads")
parser.add_argument("--student", help="Hub id or folder of a student, instead of creating one of --size")
parser.add_argument("--init", default="teacher", choices=["teacher", "layers", "random"])
parser.add_argument("--max_length", type=int, default=512)
parser.add_argument("--fine_tuning_epochs", type=float, default=3)
parser.add_argument("--intermediate_epochs", type=float, default=3, help="0 leaves the phase out")
parser.add_argument("--prediction_epochs", type=float, default=3)
parser.add_argument("--prediction_losses", nargs="+", default=["prediction"])
parser.add_argument("--learning_rate", type=float, default=1e-4, help="of the two phases of the student")
parser.add_argument("--batch_size", type=int, default=32)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--output_dir", type=Path, default=Path("runs/ner"))
parser.add_argument("--smoke", action="store_true", help="a quick check: few rows, one epoch a phase, one layer")
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
results = task_distillation(
    task,
    data,
    options.teacher,
    options.output_dir,
    student=options.student or size,
    init=options.init,
    fine_tuning={"num_train_epochs": epochs[0], "learning_rate": 5e-5},
    intermediate={
        "num_train_epochs": epochs[1],
        "learning_rate": options.learning_rate,
        "loss_type": ["attention", "hidden", "embedding"],
    },
    prediction={
        "num_train_epochs": epochs[2],
        "learning_rate": options.learning_rate,
        "loss_type": options.prediction_losses,
    },
    labels={"num_train_epochs": 0},
    per_device_train_batch_size=options.batch_size,
    seed=options.seed,
    bf16=options.bf16,
    use_cpu=not torch.accelerator.is_available(),
    report_to=[],
)
print(json.dumps(results, indent=1))
