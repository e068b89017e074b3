"""Time and peak memory of one step of the intermediate phase, BERT-base → TinyBERT4 (random weights), by length.

    python recipes/benchmarks/step.py [--device cuda --bf16] [--lengths 128 512 2048] [--rounds 5] [--memory]
    python recipes/benchmarks/step.py --modern --lengths 2048 8192 --rounds 1 --variants limit hf_tinybert --memory

`limit` is teacher forward, student forward and backward under sdpa and nothing else. `eager` is the usual Trainer
subclass (output_attentions, MSE of attention probabilities and of projected hidden states). `hf_tinybert` is
DistillationTrainer with attention, hidden and embedding losses. The variants take turns, and ratios are medians over
rounds. A step ends before the optimizer. Memory is measured in one process for each variant.
"""

import argparse
import json
import subprocess
import sys
from operator import truediv
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
import transformers
from datasets import Dataset
from torch.nn.functional import mse_loss

from hf_tinybert import TINYBERT4, DistillationArguments, DistillationTrainer, create_student

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2048])
parser.add_argument("--tokens", type=int, default=1024, help="number of tokens in a batch")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--steps", type=int, default=3, help="steps in a turn; the first is not counted")
parser.add_argument("--modern", action="store_true", help="both ModernBERT's architecture instead of BERT's")
parser.add_argument(
    "--variants", nargs="+", default=["limit", "hf_tinybert", "eager"], help="the first is the baseline"
)
parser.add_argument("--teacher_dtype", help="of hf_tinybert")
parser.add_argument("--memory", action="store_true", help="measure peak memory too")
parser.add_argument("--profile", action="store_true", help="print the top operators of one turn of hf_tinybert")
parser.add_argument("--memory_of", nargs=2, help=argparse.SUPPRESS)
options = parser.parse_args()
cuda = options.device == "cuda"


class Limit(transformers.Trainer):
    def compute_loss_context_manager(self):
        return self.accelerator.autocast()  # Accelerate's covers only the forward of the whole student

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with torch.no_grad():
            self.teacher.base_model(**inputs)
        return model.base_model(**inputs).last_hidden_state.square().mean()


class Eager(Limit):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs |= {"output_attentions": True, "output_hidden_states": True}
        with torch.no_grad():
            teacher = self.teacher.base_model(**inputs)
        student = model.base_model(**inputs)
        pairs = list(zip(student.attentions, teacher.attentions[2::3], strict=True))
        pairs += zip(map(model.projection, student.hidden_states), teacher.hidden_states[::3], strict=True)
        return sum(mse_loss(*pair) for pair in pairs)


class Clock(transformers.TrainerCallback):
    def __init__(self):
        self.times = []

    def on_step_begin(self, args, state, control, **kwargs):
        torch.cuda.synchronize() if cuda else None
        self.times.append(perf_counter())

    on_pre_optimizer_step = on_step_begin


def build(variant: str, length: int) -> tuple[transformers.Trainer, list[float]]:
    attention = {"attn_implementation": "eager" if variant == "eager" else "sdpa"}
    sizes = {"num_hidden_layers": 12, "max_position_embeddings": max(512, length)}
    config = (transformers.ModernBertConfig if options.modern else transformers.BertConfig)(**sizes, **attention)
    teacher = transformers.AutoModelForSequenceClassification.from_config(config).eval().to(options.device)
    size = TINYBERT4 | {"intermediate_size": min(1200, config.intermediate_size)}
    student, batch = create_student(teacher, **size, init="random"), max(1, options.tokens // length)
    ids = torch.randint(1000, 30000, (batch * options.steps, length)).tolist()
    data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * length] * len(ids)})
    args = {"output_dir": "runs/step", "save_strategy": "no", "bf16": options.bf16, "use_cpu": not cuda}
    args |= {"max_steps": options.steps, "per_device_train_batch_size": batch}
    common = {"model": student, "train_dataset": data, "callbacks": [clock := Clock()]}
    if variant == "hf_tinybert":
        args |= {"loss_type": ["attention", "hidden", "embedding"], "teacher_dtype": options.teacher_dtype}
        arguments = DistillationArguments(**args)
        return DistillationTrainer(**common, args=arguments, teacher_model=teacher), clock.times
    student.projection = torch.nn.Linear(student.config.hidden_size, config.hidden_size).to(options.device)
    trainer = (Limit if variant == "limit" else Eager)(**common, args=transformers.TrainingArguments(**args))
    trainer.teacher = teacher
    return trainer, clock.times


def milliseconds(times: list[float]) -> list[float]:
    """The median step of each turn."""
    taken = [1000 * (end - start) for start, end in zip(times[::2], times[1::2], strict=True)]
    return [median(taken[start + 1 : start + options.steps]) for start in range(0, len(taken), options.steps)]


def peak_megabytes(variant: str, length: int) -> float:
    command = [sys.executable, *sys.argv, "--memory_of", variant, str(length)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


transformers.logging.set_verbosity_error()
if options.memory_of:
    build(options.memory_of[0], int(options.memory_of[1]))[0].train()
    resident = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    sys.exit(print(torch.cuda.max_memory_allocated() / 2**20 if cuda else int(resident) / 2**10))
results = []
for length in options.lengths:
    runs = {variant: build(variant, length) for variant in options.variants}
    for trainer, _ in [run for _ in range(options.rounds) for run in runs.values()]:
        trainer.train()
    row = {"S": length, "B": runs[options.variants[0]][0].args.per_device_train_batch_size}
    turns = {name: milliseconds(times) for name, (_, times) in runs.items()}
    row |= {f"{name} ms": median(turn) for name, turn in turns.items()}
    baseline, *others = options.variants
    for name in others:  # within a round: a slow machine slows both
        row[f"{name} / {baseline}"] = median(map(truediv, turns[name], turns[baseline]))
    if options.profile:
        with torch.profiler.profile() as profile:
            runs["hf_tinybert"][0].train()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))
    del runs, trainer
    if options.memory:
        row |= {f"{name} MB": peak_megabytes(name, length) for name in options.variants}
    results.append(row)
    if len(results) == 1:
        print("| " + " | ".join(row) + " |", "|---" * len(row) + "|", sep="\n")
    print("| " + " | ".join(f"{value:.4g}" for value in row.values()) + " |", flush=True)
Path("runs/step.json").write_text(json.dumps({"torch": torch.__version__, "rows": results}))
