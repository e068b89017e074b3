"""TinyBERT, 4 × 384, as in MindSpore's model zoo and on ModelArts: general distillation, then task distillation.

    python recipes/tinybert_384.py --task sst2 --bf16
    accelerate launch --multi_gpu --num_processes 8 recipes/tinybert_384.py --task mnli --bf16
    python recipes/tinybert_384.py --teacher folder/of/bert --text folder/of/texts --data folder/of/glue --smoke

Model: mindspore model_zoo/official/nlp/tinybert, its README and yaml files: 4 × 384/1536, 12 attention heads, batches
of 32 on each device; 3 epochs of English Wikipedia at 5e-5; on the task 10 epochs at 5e-5, then 3 at 2e-5; all rates
decay linearly without warm-up.
Published validation accuracy: SST-2 90.3 (Ascend) and 90.9 (V100), MNLI 81.4, QNLI 89.1. Augmentation is not
mentioned.
Hardware: published for 8 Ascend 910 (17.3 hours for Wikipedia) or 8 V100 (48 hours). Not run at full size here.
Computed: Wikipedia's 2.5 billion words are 2.1e18 FLOP, or 350 minutes at 100 TFLOP/s; SST-2 is 33,700 short steps.
The published student starts from random weights (--init random). A run that was killed continues with the same
command. The general student in OUTPUT_DIR/general is shared by all tasks. Prints and writes
OUTPUT_DIR/TASK/results.json.
"""

import argparse
import json
from pathlib import Path

import torch
from datasets import load_dataset

from hf_tinybert import GLUE, TINYBERT4, general_distillation, task_distillation

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--teacher", default="bert-base-uncased", help="Hub id or folder; fine-tuned for the task phases")
parser.add_argument(
    "--text",
    nargs="+",
    default=["wikimedia/wikipedia", "20231101.en"],
    help="Hub id and configuration, or a folder, with a column `text`",
)
parser.add_argument("--student", help="Hub id or folder of a general student; leaves general distillation out")
parser.add_argument("--task", choices=GLUE, default="sst2")
parser.add_argument("--data", default="nyu-mll/glue", help="Hub id, or a folder of one folder of parquet files a task")
parser.add_argument("--init", default="teacher", choices=["teacher", "random"])
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--output_dir", type=Path, default=Path("runs/tinybert_384"))
parser.add_argument("--smoke", action="store_true", help="a quick check: few rows and steps, a tiny student")
options = parser.parse_args()

size, epochs, rows, max_steps, calibration_rows = (4, 384, 1536, 12), (3, 10, 3), None, -1, 500
if options.smoke:
    size, epochs, rows, max_steps, calibration_rows = (2, 24, 48, 12), (1, 1, 1), 32, 2, 32
student, general = options.student, options.output_dir / "general"
common = {"per_device_train_batch_size": 32, "weight_decay": 1e-4, "warmup_steps": 0, "adam_epsilon": 1e-6}
common |= {"seed": options.seed, "bf16": options.bf16, "report_to": []}
common["use_cpu"] = not torch.accelerator.is_available()

if student is None:
    text = load_dataset(*options.text, split="train")
    general_distillation(
        text.take(rows) if rows else text,
        options.teacher,
        general,
        student=dict(zip(TINYBERT4, size, strict=True)),
        init=options.init,
        calibration_rows=calibration_rows,
        num_train_epochs=epochs[0],
        max_steps=max_steps,
        learning_rate=5e-5,
        **common,
    )
    student = general
task = GLUE[options.task]
data = task.load(options.data)
results = task_distillation(
    task,
    data if rows is None else type(data)({split: part.take(rows) for split, part in data.items()}),
    options.teacher,
    options.output_dir / task.name,
    student=student,
    fine_tuning={"num_train_epochs": min(3, epochs[1]), "weight_decay": 0.01, "warmup_steps": 0.1},
    intermediate={
        "num_train_epochs": epochs[1],
        "learning_rate": 5e-5,
        "loss_type": ["attention", "hidden", "embedding"],
    },
    prediction={"num_train_epochs": epochs[2], "learning_rate": 2e-5},
    labels={"num_train_epochs": 0},
    augmentation=None,
    **common,
)
print(json.dumps(results, indent=1))
