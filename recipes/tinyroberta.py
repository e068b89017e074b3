"""TinyRoBERTa, general and on SQuAD 2.0, as deepset/tinyroberta-6l-768d and deepset/tinyroberta-squad2.

    python recipes/tinyroberta.py --augment 20 --vectors glove.6B.300d.txt --bf16
    accelerate launch --multi_gpu --num_processes 4 recipes/tinyroberta.py --batch_size 24 --bf16
    python recipes/tinyroberta.py --student deepset/tinyroberta-6l-768d --bf16
    python recipes/tinyroberta.py --base folder --teacher folder --large folder --text folder \\
        --data train.json dev.json --smoke

Model cards: batches of 96 × 384 tokens, 4 epochs and 20 % warm-up throughout. Three trainings follow each other:
1. General distillation: roberta-base → 6 layers of 768 on The Pile, intermediate losses alone, 1e-4.
2. Intermediate phase on SQuAD 2.0, contexts augmented, from deepset/roberta-base-squad2.
3. Prediction phase on SQuAD 2.0: α·T²·KL + (1 − α)·CE, α 0.75, T 1.5, from deepset/roberta-large-squad2, 3e-5.
Published, dev: EM 78.86, F1 82.04. Here the default text is English Wikipedia, and training 2 is at 3e-5 too, as its
rate is not on the card.
Hardware: published for 4 V100, time unknown. Not run at full size here. Computed, at 100 TFLOP/s: 70 minutes an epoch
and billion tokens of text; SQuAD 2.0's 22 million tokens 12 minutes, with 20 variants 140, without the augmentation.
A run that was killed continues with the same command. Prints and writes OUTPUT_DIR/squad_v2/results.json.
"""

import argparse
import json
from pathlib import Path

import torch
from datasets import DatasetDict, load_dataset
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hf_tinybert import (
    SQUAD_V2,
    TINYBERT6,
    MaskedWords,
    WordVectors,
    general_distillation,
    read_squad,
    task_distillation,
)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--base", default="roberta-base", help="teacher of training 1; Hub id or folder")
parser.add_argument("--teacher", default="deepset/roberta-base-squad2", help="teacher of the intermediate phase")
parser.add_argument("--large", default="deepset/roberta-large-squad2", help="teacher of the prediction phase")
parser.add_argument("--student", help="a general student; leaves training 1 out")
parser.add_argument(
    "--text", nargs="+", default=["wikimedia/wikipedia", "20231101.en"], help="of training 1, or a folder"
)
parser.add_argument("--data", nargs="+", default=["rajpurkar/squad_v2"], help="Hub id, folder, or two JSON files")
parser.add_argument("--augment", type=int, default=0, help="number of variants of each context, in training 2")
parser.add_argument("--masked_lm", default="bert-base-uncased", help="for the augmentation")
parser.add_argument("--vectors", nargs="+", type=Path, help="a GloVe text file, or a .npy file and its words")
parser.add_argument("--alpha", type=float, default=0.75)
parser.add_argument("--temperature", type=float, default=1.5)
parser.add_argument("--batch_size", type=int, default=96, help="rows a batch, in each process")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--output_dir", type=Path, default=Path("runs/tinyroberta"))
parser.add_argument("--smoke", action="store_true", help="a quick check: few rows, one epoch a phase, a tiny student")
options = parser.parse_args()

if len(options.data) == 2:
    data = DatasetDict(zip(("train", "validation"), map(read_squad, options.data), strict=True))
else:
    data = SQUAD_V2.load(*options.data)
general = {"student": TINYBERT6, "max_length": 384, "learning_rate": 1e-4}
common = {"num_train_epochs": 4, "per_device_train_batch_size": options.batch_size, "warmup_steps": 0.2}
common |= {"seed": options.seed, "bf16": options.bf16, "use_cpu": not torch.accelerator.is_available()}
if options.smoke:
    data = DatasetDict({split: rows.take(16) for split, rows in data.items()})
    general |= {"student": dict(zip(TINYBERT6, (2, 48, 96, 12), strict=True)), "max_length": 32}
    general |= {"calibration_rows": 32, "max_steps": 2}
    common |= {"num_train_epochs": 1, "per_device_train_batch_size": 8}

student = options.student or options.output_dir / "general"
if not options.student:
    text = load_dataset(*options.text, split="train")
    text = text.take(32) if options.smoke else text
    general_distillation(text, options.base, student, **general, **common, report_to=[])
augmentation = None
if options.augment:
    device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    masked_lm = AutoModelForMaskedLM.from_pretrained(options.masked_lm).to(device)
    vectors = WordVectors.load(*options.vectors) if options.vectors else None
    tokenizer = AutoTokenizer.from_pretrained(options.masked_lm)
    augmentation = MaskedWords(masked_lm, tokenizer, vectors, copies=options.augment, seed=options.seed)
prediction = {
    "teacher": options.large,
    "augmented": False,
    "loss_type": ["prediction", "task"],
    "loss_weights": [options.alpha * options.temperature**2, 1 - options.alpha],
    "temperature": options.temperature,
}
results = task_distillation(
    SQUAD_V2,
    data,
    options.teacher,
    options.output_dir / SQUAD_V2.name,
    student=student,
    augmentation=augmentation,
    intermediate={"loss_type": ["attention", "hidden", "embedding"], "augmented": True},
    prediction=prediction,
    labels={"num_train_epochs": 0},
    learning_rate=3e-5,
    **common,
    report_to=[],
)
print(json.dumps(results, indent=1))
