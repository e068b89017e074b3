"""Tokens in a second of general distillation, BERT-base → TinyBERT4, and hours for the paper's 2.5 billion words.

    python recipes/benchmarks/general_distillation.py [--device cuda --bf16 --teacher_dtype bfloat16 --compile]

One process, random weights, packed sequences, the intermediate losses; optimizer and data loading are included, and
the first steps are not counted. The floor is the arithmetic of the teacher's forward pass, the student's forward and
backward pass and the projections (counted by torch), over the fastest matrix product of this machine in that
precision.
"""

import argparse
import json
from pathlib import Path
from time import perf_counter

import torch
import transformers
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode

from hf_tinybert import TINYBERT4, DistillationArguments, DistillationTrainer, create_student

WORDS, EPOCHS = 2.5e9, 3  # the paper's English Wikipedia, section 4.2 and appendix
TOKENS_A_WORD = 1.33  # BERT's tokens, with separators, of 7.85 million words of Wikipedia, split at spaces

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--teacher_dtype")
parser.add_argument("--compile", action="store_true")
parser.add_argument("--length", type=int, default=128)
parser.add_argument("--batch_size", type=int, default=8)
parser.add_argument("--steps", type=int, default=12)
parser.add_argument("--warmup", type=int, default=4, help="steps before the clock starts")
parser.add_argument("--teacher_size", type=int, nargs=4, default=[12, 768, 3072, 12], help=", ".join(TINYBERT4))
parser.add_argument("--student_size", type=int, nargs=4, default=list(TINYBERT4.values()))
options = parser.parse_args()
cuda = options.device == "cuda"
dtype = torch.bfloat16 if options.bf16 else torch.float32


class Clock(transformers.TrainerCallback):
    def __init__(self):
        self.times = []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in (options.warmup, options.steps):  # no synchronisation in between
            torch.cuda.synchronize() if cuda else None
            self.times.append(perf_counter())


def matmul_flops(size: int = 8192 if cuda else 2048, repeats: int = 20) -> float:
    """FLOP in a second of a square matrix product, the best of several."""
    a, b = (torch.randn(size, size, device=options.device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        torch.cuda.synchronize() if cuda else None
        start = perf_counter()
        a @ b
        torch.cuda.synchronize() if cuda else None
        best = min(best, perf_counter() - start)
    return 2 * size**3 / best


transformers.logging.set_verbosity_error()
transformers.set_seed(0)
sizes = [dict(zip(TINYBERT4, size, strict=True)) for size in (options.teacher_size, options.student_size)]
config = transformers.BertConfig(**sizes[0], max_position_embeddings=max(512, options.length))
teacher = transformers.BertModel(config).eval().to(options.device)
student = create_student(teacher, **sizes[1], init="random")
ids = torch.randint(1000, 30000, (options.batch_size * options.steps, options.length))
data = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})

projection = torch.nn.Linear(student.config.hidden_size, config.hidden_size, device=options.device)
with FlopCounterMode(display=False) as counter:
    rows = ids[:2].to(options.device)
    with torch.no_grad():
        teacher(rows)
    states = student.to(options.device)(rows, output_hidden_states=True).hidden_states
    sum(projection(state).sum() for state in states).backward()
student.zero_grad()
flops = counter.get_total_flops() / rows.numel()

args = DistillationArguments(
    output_dir="runs/general",
    max_steps=options.steps,
    per_device_train_batch_size=options.batch_size,
    loss_type=["attention", "hidden", "embedding"],
    bf16=options.bf16,
    teacher_dtype=options.teacher_dtype,
    torch_compile=options.compile,
    dataloader_num_workers=4 if cuda else 0,
    use_cpu=not cuda,
    save_strategy="no",
    disable_tqdm=True,
    report_to=[],
    logging_steps=10 * options.steps,
)
clock = Clock()
DistillationTrainer(student, args, train_dataset=data, teacher_model=teacher, callbacks=[clock]).train()
tokens = (options.steps - options.warmup) * options.batch_size * options.length
speed, ceiling = tokens / (clock.times[1] - clock.times[0]), matmul_flops()
total = WORDS * TOKENS_A_WORD * EPOCHS
row = {
    "device": torch.cuda.get_device_name() if cuda else "cpu",
    "precision": "bf16" if options.bf16 else "fp32",
    "teacher": options.teacher_dtype or "float32",
    "compiled": options.compile,
    "B": options.batch_size,
    "S": options.length,
    "tokens / s": speed,
    "MFLOP / token": flops / 1e6,
    "matmul GFLOP/s": ceiling / 1e9,
    "share of it": speed * flops / ceiling,
    f"hours, {EPOCHS} × 2.5 G words": total / speed / 3600,
    "floor, hours": total * flops / ceiling / 3600,
    "peak MB": torch.cuda.max_memory_allocated() / 2**20 if cuda else float("nan"),
}
print("| " + " | ".join(row) + " |", "|---" * len(row) + "|", sep="\n")
print("| " + " | ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()) + " |")
Path("runs/general_distillation.json").write_text(json.dumps({"torch": torch.__version__, **row}))
