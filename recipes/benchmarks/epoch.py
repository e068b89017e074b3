"""Seconds of one intermediate and one prediction epoch on a GLUE task, with everything around the step.

    python recipes/benchmarks/epoch.py --teacher folder [--task sst2 --data folder --rows 16000 --bf16]

`ours`: DistillationTrainer, batches grouped by length, logits cached. `kept`: what the intermediate step reads is on
disk as well. The passes that put it there are rows of their own. `packed`: `ours` with `padding_free`;
`packed, random`: that in batches of any lengths. `plain`: Trainer on the labels of the same batches,
no teacher. `usual`: the Trainer subclass that people write, eager attention probabilities and hidden states or soft
targets from a live teacher, random batches padded to their longest. `padded`: the same, every sentence padded to
`max_length`, as in the original TinyBERT code. They take turns, medians over rounds.
"""

import argparse
import json
import random
import shutil
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import datasets
import torch
import transformers
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer

from hf_tinybert import GLUE, TINYBERT4, DistillationArguments, DistillationTrainer, cache_logits, create_student

OURS = ("ours", "kept", "packed", "packed, random")
VARIANTS = (*OURS[1:], "plain", "usual", "padded")
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--task", choices=GLUE, default="sst2")
parser.add_argument("--data", default="nyu-mll/glue")
parser.add_argument("--teacher", required=True, help="Hub id or folder, fine-tuned or not: only speed is measured")
parser.add_argument("--size", type=int, nargs=4, default=[3, 312, 1200, 12], help="layers, width, feed-forward, heads")
parser.add_argument("--rows", type=int, default=16000)
parser.add_argument("--batch_size", type=int, default=32)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=VARIANTS, help="beside `ours`; default: all")
options = parser.parse_args()


class Usual(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs.pop("labels")
        if self.intermediate:
            inputs |= {"output_attentions": True, "output_hidden_states": True}
        with torch.no_grad(), self.accelerator.autocast():
            teacher = self.teacher(**inputs)
        student = model(**inputs)
        if not self.intermediate:
            return F.cross_entropy(student.logits, teacher.logits.softmax(-1))
        step = len(teacher.attentions) // len(student.attentions)
        pairs = list(zip(student.attentions, teacher.attentions[step - 1 :: step], strict=True))
        pairs += zip(map(model.projection, student.hidden_states), teacher.hidden_states[::step], strict=True)
        return sum(F.mse_loss(ours, theirs) for ours, theirs in pairs)


def load_teacher(**kind):
    transformers.set_seed(0)  # its head may be new: the same each time
    return AutoModelForSequenceClassification.from_pretrained(options.teacher, **task.head, **kind).eval()


def epoch(variant: str, intermediate: bool, epochs: float = 1) -> float:
    """Seconds of one epoch (or of `epochs`) of a new student, training only."""
    kind = {"attn_implementation": "eager"} if variant in ("usual", "padded") and intermediate else {}
    teacher = load_teacher(**kind)
    student = create_student(teacher, **size, init="random")
    cpu = not torch.accelerator.is_available()
    args = {"output_dir": "runs/epoch", "num_train_epochs": 1, "per_device_train_batch_size": options.batch_size}
    args |= {"save_strategy": "no", "report_to": [], "bf16": options.bf16, "use_cpu": cpu, "disable_tqdm": True}
    grouped = {"train_sampling_strategy": "group_by_length"}
    padding = {"padding": "max_length", "max_length": task.max_length} if variant == "padded" else {}
    common = {"model": student, "train_dataset": cached if variant == "ours" and not intermediate else rows}
    common["data_collator"] = DataCollatorWithPadding(tokenizer, **padding)
    if variant == "plain":
        args = transformers.TrainingArguments(**args, **grouped)
        trainer = Trainer(**common, args=args, processing_class=tokenizer)
    elif variant in OURS:
        losses = ["attention", "hidden", "embedding"] if intermediate else ["prediction"]
        kept = {"teacher_cache_gb": 20 if variant == "kept" else 0, "num_train_epochs": epochs}
        order = {} if variant == "packed, random" else grouped
        packed = variant in ("packed", "packed, random")
        args = DistillationArguments(**args | kept | order, loss_type=losses, padding_free=packed)
        trainer = DistillationTrainer(**common, args=args, processing_class=tokenizer, teacher_model=teacher)
    else:
        student.projection = torch.nn.Linear(student.config.hidden_size, teacher.config.hidden_size)
        trainer = Usual(**common, args=transformers.TrainingArguments(**args))
        trainer.teacher, trainer.intermediate = teacher.to(trainer.args.device), intermediate
    return trainer.train().metrics["train_runtime"]


task, tokenizer = GLUE[options.task], AutoTokenizer.from_pretrained(options.teacher)
size = dict(zip(TINYBERT4, options.size, strict=True))
data = task.load(options.data)["train"]
chosen = random.Random(0).sample(range(len(data)), min(options.rows, len(data)))
rows = task.tokenize(data.select(chosen), tokenizer)
start = perf_counter()
cached = cache_logits(load_teacher(), rows, tokenizer)
results = [{"step": "logits, once", "ours s": perf_counter() - start}]
datasets.config.HF_DATASETS_CACHE = tempfile.mkdtemp(prefix="epoch_")
start = perf_counter()
seconds = epoch("kept", intermediate=True, epochs=2)  # one epoch alone would not be worth it
results.append({"step": "activations, once", "kept s": perf_counter() - start - seconds})
kept_bytes = sum(file.stat().st_size for file in Path(datasets.config.HF_DATASETS_CACHE).rglob("records*"))
for intermediate in (True, False):
    left_out = "plain" if intermediate else "kept"
    runs = {name: [] for name in ("ours", *options.variants) if name != left_out}
    for _ in range(options.rounds):
        for name, seconds in runs.items():
            seconds.append(epoch(name, intermediate))
    row = {"step": "intermediate" if intermediate else "prediction"}
    row |= {f"{name} s": median(seconds) for name, seconds in runs.items()}
    for name in list(runs)[1:]:
        row[f"{name} / ours"] = median(a / b for a, b in zip(runs[name], runs["ours"], strict=True))
    results.append(row)
shutil.rmtree(datasets.config.HF_DATASETS_CACHE)
names = list(dict.fromkeys(name for row in results[2:] for name in row))
print("| " + " | ".join(names) + " |", "|---" * len(names) + "|", sep="\n")
for row in results:
    print("| " + " | ".join(v if isinstance(v := row.get(n, ""), str) else f"{v:.3g}" for n in names) + " |")
print(f"Kept activations: {kept_bytes / len(rows):.0f} bytes a row.")
settings = {"bf16": options.bf16, "rows": len(rows), "kept bytes a row": kept_bytes / len(rows)}
Path("runs/epoch.json").write_text(json.dumps(settings | {"results": results}))
