"""MiniLMv2 or MiniLM: a general student, 6 × 384, that learns only the self-attention of the teacher's last layer.

    python recipes/minilm.py --bf16
    accelerate launch --multi_gpu --num_processes 8 recipes/minilm.py --batch_size 32 --bf16
    python recipes/minilm.py --version 1 --batch_size 128 --accumulate 8 --learning_rate 5e-4 --bf16
    python recipes/minilm.py --teacher bert-large-uncased --layer_mapping 4,8,12,16,20,21 --relation_heads 64 --bf16
    python recipes/minilm.py --teacher folder/of/bert --data folder/of/texts --smoke

Papers: Wang et al., 2021, arXiv 2012.15828 (relations of queries, keys and values, 48 relation heads for a teacher of
BERT-base's size); Wang et al., 2020, arXiv 2002.10957 (--version 1: attention and value relations).
Published scores, 6 × 384, fine-tuned, dev sets: MNLI-m 83.3, SQuAD 2.0 75.6 F1, SST-2 91.5, QNLI 90.5 (README of
microsoft/unilm/minilm, version 1). Their teacher is unpublished (UniLMv2 of BERT-base's size) and stronger than
BERT-base. 83.3 is for scale; this command is not expected to reach it.
Hardware: not run at full size. Computed: 400,000 batches of 256 × 512 tokens are 1.2e19 FLOP, or 2,000 minutes at
100 TFLOP/s. A run that was killed continues with the same command. The student in OUTPUT_DIR can be fine-tuned as any
BERT, or distilled further: `recipes/task_distillation.py --student runs/minilm`.
"""

import argparse
from pathlib import Path

import torch
from datasets import load_dataset

from hf_tinybert import TINYBERT4, general_distillation

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--teacher", default="bert-base-uncased", help="Hub id or folder of a pre-trained encoder")
parser.add_argument(
    "--data",
    nargs="+",
    default=["wikimedia/wikipedia", "20231101.en"],
    help="Hub id and configuration, or a folder, with a column `text`",
)
parser.add_argument("--version", type=int, default=2, choices=[1, 2])
parser.add_argument("--size", type=int, nargs=4, default=[6, 384, 1536, 12], help="layers, width, feed-forward, heads")
parser.add_argument("--init", default="teacher", choices=["teacher", "random"], help="the papers use random")
parser.add_argument("--relation_heads", type=int, default=48, help="for version 2; must divide both widths")
parser.add_argument("--layer_mapping", default="uniform", help="only the last pair is used")
parser.add_argument("--max_length", type=int, default=512)
parser.add_argument("--max_steps", type=int, default=400_000)
parser.add_argument("--batch_size", type=int, default=256, help="rows a batch, in each process")
parser.add_argument("--accumulate", type=int, default=1, help="batches an optimizer step")
parser.add_argument("--learning_rate", type=float, default=6e-4)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--output_dir", type=Path, default=Path("runs/minilm"))
parser.add_argument("--smoke", action="store_true", help="a quick check: few rows and steps, a tiny student")
options = parser.parse_args()

text, calibration_rows = load_dataset(*options.data, split="train"), 500
if options.smoke:
    text, calibration_rows, options.batch_size = text.take(32), 32, 8
    options.size, options.max_length, options.max_steps = (2, 48, 96, 12), 32, 2
general_distillation(
    text,
    options.teacher,
    options.output_dir,
    student=dict(zip(TINYBERT4, options.size, strict=True)),
    init=options.init,
    calibration_rows=calibration_rows,
    max_length=options.max_length,
    loss_type=["relation"] if options.version == 2 else ["minilm"],
    relation_heads=options.relation_heads,
    layer_mapping=options.layer_mapping,
    max_steps=options.max_steps,
    per_device_train_batch_size=options.batch_size,
    gradient_accumulation_steps=options.accumulate,
    learning_rate=options.learning_rate,
    warmup_steps=0.01,  # 4,000 of 400,000
    weight_decay=0.01,
    save_steps=1000,
    logging_steps=100,
    seed=options.seed,
    bf16=options.bf16,
    use_cpu=not torch.accelerator.is_available(),
    report_to=[],
)
