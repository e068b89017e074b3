"""SEAD: a student, 6 × 256, from several fine-tuned teachers at once, on a task of GLUE.

    python recipes/sead.py --task sst2 --bf16
    python recipes/sead.py --task rte --student microsoft/xtremedistil-l6-h384-uncased --augment 20 --bf16
    python recipes/sead.py --teachers folder/a folder/b --student folder/c --data folder/of/glue --smoke

Model cards: C5i/SEAD-L-6_H-256_A-8-TASK and C5i/SEAD-L-6_H-384_A-12-TASK, started from
microsoft/xtremedistil-l6-h256-uncased or -h384-. Paper: Mei and Sroch, 2022, Lattice 3(1), "utilizing multiple
teachers". Its losses and weights were not found in public text; those below are choices of this recipe. Of its scores
only WNLI's 57.8 was found (card, 6 × 384). The abstract says "comparable or superior" to BERT. The start has these
scores when it is fine-tuned, dev (README of microsoft/xtreme-distil-transformers, 6 × 256): MNLI 83.9, QNLI 89.5, QQP
90.6, RTE 80.1, SST-2 91.2, MRPC 90.0.
Teachers: any models with the same vocabulary; those without a prediction head are fine-tuned first. The default is
BERT-base and -large. A student of 8 attention heads cannot learn the attention scores of 12 or 16. It learns the
relations (MiniLMv2), hidden states and embeddings of each teacher, weighted, then their combined logits and the
labels.
Hardware: not run at full size. Computed: SST-2's 0.9 million tokens are 1e16 FLOP, half of them to fine-tune
BERT-large, in 34,000 short steps. A run that was killed continues with the same command. Prints and writes
OUTPUT_DIR/TASK/results.json.
"""

import argparse
import json
from pathlib import Path

import torch
from datasets import DatasetDict
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hf_tinybert import GLUE, MaskedWords, task_distillation

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--task", choices=GLUE, default="sst2")
parser.add_argument("--data", default="nyu-mll/glue", help="Hub id, or a folder of one folder of parquet files a task")
parser.add_argument(
    "--teachers", nargs="+", default=["bert-base-uncased", "bert-large-uncased"], help="Hub ids or folders"
)
parser.add_argument("--teacher_weights", nargs="+", type=float, help="one for each teacher; default equal")
parser.add_argument("--teacher_logits", default="mean", choices=["mean", "confidence"])
parser.add_argument("--student", default="microsoft/xtremedistil-l6-h256-uncased", help="Hub id or folder")
parser.add_argument("--relation_heads", type=int, default=8, help="must divide all widths")
parser.add_argument("--intermediate_losses", nargs="+", default=["relation", "hidden", "embedding"])
parser.add_argument("--prediction_losses", nargs="+", default=["prediction", "task"])
parser.add_argument("--augment", type=int, default=0, help="number of variants of each row")
parser.add_argument("--masked_lm", default="bert-base-uncased", help="Hub id or folder, for the augmentation")
parser.add_argument("--epochs", type=float, default=5, help="of each phase")
parser.add_argument("--learning_rate", type=float, default=1e-4)
parser.add_argument("--batch_size", type=int, default=32)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--output_dir", type=Path, default=Path("runs/sead"))
parser.add_argument("--smoke", action="store_true", help="a quick check: few rows, one epoch a phase")
options = parser.parse_args()

task = GLUE[options.task]
data, fine_tuning_epochs = task.load(options.data), 3
if options.smoke:
    data = DatasetDict({split: rows.take(32) for split, rows in data.items()})
    options.epochs, fine_tuning_epochs = 1, 1
augmentation = None
if options.augment:
    device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    masked_lm = AutoModelForMaskedLM.from_pretrained(options.masked_lm).to(device)
    tokenizer = AutoTokenizer.from_pretrained(options.masked_lm)
    augmentation = MaskedWords(masked_lm, tokenizer, copies=options.augment, seed=options.seed)
results = task_distillation(
    task,
    data,
    options.teachers,
    options.output_dir / task.name,
    student=options.student,
    augmentation=augmentation,
    fine_tuning={"num_train_epochs": fine_tuning_epochs, "learning_rate": 3e-5},
    intermediate={
        "teacher_weights": options.teacher_weights,
        "teacher_logits": options.teacher_logits,
        "loss_type": options.intermediate_losses,
        "relation_heads": options.relation_heads,
        "augmented": True,
    },
    prediction={
        "teacher_weights": options.teacher_weights,
        "teacher_logits": options.teacher_logits,
        "loss_type": options.prediction_losses,
    },
    labels={"num_train_epochs": 0},
    num_train_epochs=options.epochs,
    learning_rate=options.learning_rate,
    per_device_train_batch_size=options.batch_size,
    seed=options.seed,
    bf16=options.bf16,
    use_cpu=not torch.accelerator.is_available(),
    report_to=[],
)
print(json.dumps(results, indent=1))
