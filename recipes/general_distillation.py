"""A general TinyBERT from plain text: a student of a pre-trained teacher's intermediate layers, before any task.

    python recipes/general_distillation.py --teacher bert-base-uncased --data wikimedia/wikipedia \\
        --config 20231101.en --size 4 312 1200 12 --batch_size 256 --learning_rate 5e-5
    accelerate launch --multi_gpu --num_processes 8 recipes/general_distillation.py ... --bf16
    accelerate launch --config_file recipes/fsdp.yaml recipes/general_distillation.py ... --bf16
    python recipes/general_distillation.py ... --stream --max_steps 100000

Paper: TinyBERT, section 3.2 (English Wikipedia, 2.5 billion words, 3 epochs, 128 tokens). A run that was killed
continues with the same command. The student is saved in OUTPUT_DIR, for `recipes/task_distillation.py --student`.
"""

import argparse
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import load_dataset

from hf_tinybert import TINYBERT4, general_distillation

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--teacher", required=True, help="Hub id or folder of a pre-trained encoder")
parser.add_argument("--data", required=True, help="Hub id, folder, or one file (parquet, json, csv, txt)")
parser.add_argument("--config", help="configuration of the data set")
parser.add_argument("--split", default="train")
parser.add_argument("--text", default="text", help="column of the text")
parser.add_argument("--stream", action="store_true", help="read while training, store nothing; needs --max_steps")
parser.add_argument("--size", type=int, nargs=4, default=[4, 312, 1200, 12], help="layers, width, feed-forward, heads")
parser.add_argument("--student", help="Hub id or folder of a student to train, instead of creating one")
parser.add_argument("--init", default="teacher", choices=["teacher", "layers", "random"])
parser.add_argument("--calibration_rows", type=int, default=500, help="number of sequences that --init teacher reads")
parser.add_argument("--max_length", type=int, default=128)
parser.add_argument("--unpacked", action="store_true", help="one text is one sequence; batches grouped by length")
parser.add_argument("--losses", nargs="+", default=["attention", "hidden", "embedding"])
parser.add_argument("--layer_mapping", default="uniform")
parser.add_argument("--epochs", type=float, default=3)
parser.add_argument("--max_steps", type=int, default=-1)
parser.add_argument("--batch_size", type=int, default=32, help="rows a batch, in each process")
parser.add_argument("--learning_rate", type=float, default=1e-4)
parser.add_argument("--save_steps", type=float, default=500)
parser.add_argument("--logging_steps", type=float, default=100)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--output_dir", type=Path, default=Path("runs/general"))
options = parser.parse_args()

if Path(options.data).is_file():
    kind = {".jsonl": "json", ".txt": "text"}.get(Path(options.data).suffix, Path(options.data).suffix[1:])
    source = {"path": kind, "data_files": options.data}
else:
    source = {"path": options.data, "name": options.config}
general_distillation(
    load_dataset(**source, split=options.split, streaming=options.stream),
    options.teacher,
    options.output_dir,
    student=options.student or dict(zip(TINYBERT4, options.size, strict=True)),
    init=options.init,
    calibration_rows=options.calibration_rows,
    text=options.text,
    max_length=options.max_length,
    packed=not options.unpacked,
    loss_type=options.losses,
    layer_mapping=options.layer_mapping,
    num_train_epochs=options.epochs,
    max_steps=options.max_steps,
    per_device_train_batch_size=options.batch_size,
    learning_rate=options.learning_rate,
    save_steps=options.save_steps,
    logging_steps=options.logging_steps,
    seed=options.seed,
    bf16=options.bf16,
    use_cpu=not torch.accelerator.is_available(),
    report_to=[],
)
PartialState().destroy_process_group()  # or a thread of it may abort the process while it ends
