"""The paper's recipe for one GLUE task: teacher fine-tuned, data augmented, intermediate phase, prediction phase.

    python recipes/task_distillation.py --task sst2 --teacher bert-base-uncased --augment 20
    python recipes/task_distillation.py --task rte --data folder/of/glue --teacher folder/of/teacher --bf16

Paper: TinyBERT, section 3.2. A run that was killed continues with the same command. Prints and writes
OUTPUT_DIR/results.json.
"""

import argparse
import json
import random
import shlex
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hf_tinybert import GLUE, TINYBERT4, MaskedWords, WordVectors, task_distillation

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--task", choices=GLUE, required=True)
parser.add_argument("--data", default="nyu-mll/glue", help="Hub id, or a folder of one folder of parquet files a task")
parser.add_argument("--rows", type=int, help="number of training rows, drawn with seed 0; default all")
parser.add_argument("--teacher", required=True, help="Hub id or folder; fine-tuned first if it has no prediction head")
parser.add_argument("--size", type=int, nargs=4, default=[4, 312, 1200, 12], help="layers, width, feed-forward, heads")
parser.add_argument("--embedding_size", type=int, help="factorise the token embeddings, e.g. 128")
parser.add_argument("--dropout", type=float, help="of the student, e.g. 0; default: the teacher's")
parser.add_argument("--student", help="Hub id or folder of a student, instead of creating one of --size")
parser.add_argument("--init", default="teacher", choices=["teacher", "layers", "random"])
parser.add_argument("--calibration_rows", type=int, default=2000, help="number of rows that --init teacher reads")
parser.add_argument("--augment", type=int, default=0, help="number of variants of each row (the paper: 20)")
parser.add_argument("--masked_lm", default="bert-base-uncased", help="Hub id or folder, for the augmentation")
parser.add_argument("--vectors", nargs="+", type=Path, help="a GloVe text file, or a .npy file and its words")
parser.add_argument("--fine_tuning_epochs", type=float, default=3)
parser.add_argument("--intermediate_epochs", type=float, default=3, help="0 leaves the phase out")
parser.add_argument("--prediction_epochs", type=float, default=3)
parser.add_argument("--intermediate_losses", nargs="+", default=["attention", "hidden", "embedding"])
parser.add_argument("--prediction_losses", nargs="+", default=["prediction"])
parser.add_argument("--layer_mapping", default="uniform")
parser.add_argument("--intermediate_learning_rate", type=float, default=1e-4)
parser.add_argument("--learning_rate", type=float, default=1e-4, help="of the prediction phase")
parser.add_argument("--batch_size", type=int, default=32)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--teacher_cache_gb", type=float, default=5, help="disk for cached activations, in GB")
parser.add_argument("--output_dir", type=Path)
options = parser.parse_args()

task = GLUE[options.task]
data = task.load(options.data)
if options.rows:
    order = list(range(len(data["train"])))
    random.Random(0).shuffle(order)
    data["train"] = data["train"].select(order[: options.rows])
augmentation = None
if options.augment:
    masked_lm = AutoModelForMaskedLM.from_pretrained(options.masked_lm)
    vectors = WordVectors.load(*options.vectors) if options.vectors else None
    tokenizer = AutoTokenizer.from_pretrained(options.masked_lm)
    augmentation = MaskedWords(masked_lm, tokenizer, vectors, copies=options.augment, seed=options.seed)
student = dict(zip(TINYBERT4, options.size, strict=True)) | {"dropout": options.dropout}
if options.embedding_size is not None:
    student["embedding_size"] = options.embedding_size
output_dir = options.output_dir or Path("runs") / options.task
results = task_distillation(
    task,
    data,
    options.teacher,
    output_dir,
    student=options.student or student,
    init=options.init,
    calibration_rows=options.calibration_rows,
    augmentation=augmentation,
    fine_tuning={"num_train_epochs": options.fine_tuning_epochs},
    intermediate={
        "num_train_epochs": options.intermediate_epochs,
        "loss_type": options.intermediate_losses,
        "learning_rate": options.intermediate_learning_rate,
        "layer_mapping": options.layer_mapping,
        "teacher_cache_gb": options.teacher_cache_gb,
        "augmented": True,
    },
    prediction={
        "num_train_epochs": options.prediction_epochs,
        "loss_type": options.prediction_losses,
        "learning_rate": options.learning_rate,
    },
    labels={"num_train_epochs": 0},
    per_device_train_batch_size=options.batch_size,
    seed=options.seed,
    bf16=options.bf16,
    use_cpu=not torch.accelerator.is_available(),
    report_to=[],
)
(output_dir / "command.txt").write_text(f"python {shlex.join(sys.argv)}\n")
print(json.dumps(results, indent=1))
PartialState().destroy_process_group()  # or a thread of it may abort the process while it ends
