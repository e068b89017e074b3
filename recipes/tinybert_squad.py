"""A TinyBERT that answers questions of SQuAD 1.1 or 2.0, as deepset/tinybert-6l-768d-squad2.

    python recipes/tinybert_squad.py --augment 20 --vectors glove.6B.300d.txt --bf16
    python recipes/tinybert_squad.py --version 1.1 --teacher bert-base-uncased --size 6 768 3072 12 --bf16
    python recipes/tinybert_squad.py --version 1.1 --teacher folder/of/bert --data train.json dev.json --smoke

Model card: student huawei-noah/TinyBERT_General_6L_768D, teacher deepset/bert-base-uncased-squad2 (a teacher without a
prediction head is fine-tuned first). Contexts are augmented 20 times for the intermediate phase only. The prediction
phase learns the teacher's logits on the plain rows. Published, SQuAD 2.0 dev: EM 73.82, F1 77.17. Paper, table 6:
TinyBERT6 74.7 / 77.7 (1.1: 79.7 / 87.5), TinyBERT4 68.2 / 71.8 (1.1: 72.7 / 82.1).
Hardware: published for one V100, time unknown. Not run at full size here. Computed: SQuAD 2.0 is 132,000 windows,
51,000 steps or 8e16 FLOP, 15 minutes at 100 TFLOP/s; with 20 variants 1e18 FLOP and 170 minutes, without the time of
the augmentation. A run that was killed continues with the same command. Prints and writes OUTPUT_DIR/results.json.
"""

import argparse
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import torch
from datasets import DatasetDict
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hf_tinybert import SQUAD, SQUAD_V2, TINYBERT4, MaskedWords, WordVectors, read_squad, task_distillation

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--version", choices=["1.1", "2.0"], default="2.0")
parser.add_argument("--data", nargs="+", help="Hub id, folder with squad or squad_v2, or two JSON files")
parser.add_argument("--teacher", default="deepset/bert-base-uncased-squad2", help="Hub id or folder")
parser.add_argument("--student", default="huawei-noah/TinyBERT_General_6L_768D", help="Hub id or folder")
parser.add_argument("--size", type=int, nargs=4, help="create a student of this size instead, e.g. 4 312 1200 12")
parser.add_argument("--init", default="teacher", choices=["teacher", "layers", "random"], help="for --size")
parser.add_argument("--calibration_rows", type=int, default=500, help="number of windows that --init teacher reads")
parser.add_argument("--rows", type=int, help="number of training questions; default all")
parser.add_argument("--max_length", type=int, default=384)
parser.add_argument("--augment", type=int, default=0, help="number of variants of each context (the card: 20)")
parser.add_argument("--masked_lm", default="bert-base-uncased", help="Hub id or folder, for the augmentation")
parser.add_argument("--vectors", nargs="+", type=Path, help="a GloVe text file, or a .npy file and its words")
parser.add_argument("--fine_tuning_epochs", type=float, default=2)
parser.add_argument("--intermediate_epochs", type=float, default=5, help="0 leaves the phase out")
parser.add_argument("--prediction_epochs", type=float, default=5)
parser.add_argument("--intermediate_losses", nargs="+", default=["attention", "hidden", "embedding"])
parser.add_argument("--prediction_losses", nargs="+", default=["prediction"])
parser.add_argument("--layer_mapping", default="uniform")
parser.add_argument("--intermediate_learning_rate", type=float, default=5e-5)
parser.add_argument("--learning_rate", type=float, default=3e-5, help="of the prediction phase")
parser.add_argument("--batch_size", type=int, default=26)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--output_dir", type=Path, default=Path("runs/tinybert_squad"))
parser.add_argument("--smoke", action="store_true", help="a quick check: few rows, one epoch a phase, a tiny student")
options = parser.parse_args()

task = replace(SQUAD if options.version == "1.1" else SQUAD_V2, max_length=options.max_length)
data = options.data or [f"rajpurkar/{task.name}"]
if len(data) == 2:
    data = DatasetDict(zip(("train", "validation"), map(read_squad, data), strict=True))
else:
    data = task.load(*data)
epochs = [options.fine_tuning_epochs, options.intermediate_epochs, options.prediction_epochs]
if options.smoke:
    data = DatasetDict({split: rows.take(16) for split, rows in data.items()})
    options.batch_size, epochs = 8, [1, 1, 1]
    if options.student == parser.get_default("student"):
        options.size = options.size or (2, 48, 96, 12)
data["train"] = data["train"].take(options.rows or len(data["train"]))
augmentation = None
if options.augment:
    device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    masked_lm = AutoModelForMaskedLM.from_pretrained(options.masked_lm).to(device)
    vectors = WordVectors.load(*options.vectors) if options.vectors else None
    tokenizer = AutoTokenizer.from_pretrained(options.masked_lm)
    augmentation = MaskedWords(masked_lm, tokenizer, vectors, copies=options.augment, seed=options.seed)
intermediate = {
    "num_train_epochs": epochs[1],
    "learning_rate": options.intermediate_learning_rate,
    "loss_type": options.intermediate_losses,
    "layer_mapping": options.layer_mapping,
    "augmented": True,
}
prediction = {
    "num_train_epochs": epochs[2],
    "learning_rate": options.learning_rate,
    "loss_type": options.prediction_losses,
    "augmented": False,
}
results = task_distillation(
    task,
    data,
    options.teacher,
    options.output_dir,
    student=dict(zip(TINYBERT4, options.size, strict=True)) if options.size else options.student,
    init=options.init,
    calibration_rows=options.calibration_rows,
    augmentation=augmentation,
    fine_tuning={"num_train_epochs": epochs[0]},
    intermediate=intermediate,
    prediction=prediction,
    labels={"num_train_epochs": 0},
    per_device_train_batch_size=options.batch_size,
    seed=options.seed,
    bf16=options.bf16,
    use_cpu=not torch.accelerator.is_available(),
    report_to=[],
)
(options.output_dir / "command.txt").write_text(f"python {shlex.join(sys.argv)}\n")
print(json.dumps(results, indent=1))
