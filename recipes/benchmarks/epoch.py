"""Seconds of one epoch of the intermediate and of the prediction phase on a GLUE task, with data loading and logging.

    python recipes/benchmarks/epoch.py --teacher folder [--task sst2 --data folder --rows 16000 --bf16]

The variants take turns, and the table shows medians over rounds:
- `hf_tinybert`: DistillationTrainer, batches grouped by length, logits cached.
- `cached`: the same, and the activations that the intermediate phase reads are cached on disk. The passes that fill
  the caches are separate rows.
- `packed`: `hf_tinybert` with `padding_free`. `packed, random`: the same in batches of any lengths.
- `plain`: Trainer on the labels of the same batches, without a teacher.
- `usual`: a common Trainer subclass, with eager attention probabilities and hidden states, or soft targets, from a
  live teacher, and random batches padded to their longest row.
- `padded`: `usual` with every sentence padded to `max_length`, as in the original TinyBERT code.
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

PACKAGE = ("hf_tinybert", "cached", "packed", "packed, random")
VARIANTS = (*PACKAGE[1:], "plain", "usual", "padded")
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--task", choices=GLUE, default="sst2")
parser.add_argument("--data", default="nyu-mll/glue")
parser.add_argument(
    "--teacher", required=True, help="Hub id or folder, fine-tuned or not, because only speed is measured"
)
parser.add_argument("--size", type=int, nargs=4, default=[3, 312, 1200, 12], help="layers, width, feed-forward, heads")
parser.add_argument("--rows", type=int, default=16000)
parser.add_argument("--batch_size", type=int, default=32)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--bf16", action="store_true")
parser.add_argument(
    "--variants", nargs="*", choices=VARIANTS, default=VARIANTS, help="beside `hf_tinybert`; default: all"
)
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
        every = len(teacher.attentions) // len(student.attentions)
        pairs = list(zip(student.attentions, teacher.attentions[every - 1 :: every], strict=True))
        pairs += zip(map(model.projection, student.hidden_states), teacher.hidden_states[::every], strict=True)
        return sum(F.mse_loss(*pair) for pair in pairs)


def load_teacher(**kind):
    transformers.set_seed(0)  # if the prediction head is new, it is the same in every call
    return AutoModelForSequenceClassification.from_pretrained(options.teacher, **task.head, **kind).eval()


def epoch(variant: str, intermediate: bool, epochs: float = 1) -> float:
    """Seconds of training a new student for one epoch, or for `epochs`."""
    kind = {"attn_implementation": "eager"} if variant in ("usual", "padded") and intermediate else {}
    teacher = load_teacher(**kind)
    student = create_student(teacher, **size, init="random")
    cpu = not torch.accelerator.is_available()
    args = {"output_dir": "runs/epoch", "per_device_train_batch_size": options.batch_size, "num_train_epochs": epochs}
    args |= {"save_strategy": "no", "report_to": [], "bf16": options.bf16, "use_cpu": cpu, "disable_tqdm": True}
    grouped = {"train_sampling_strategy": "group_by_length"}
    padding = {"padding": "max_length", "max_length": task.max_length} if variant == "padded" else {}
    common = {
        "model": student,
        "train_dataset": rows_with_logits if variant == "hf_tinybert" and not intermediate else rows,
    }
    common["data_collator"] = DataCollatorWithPadding(tokenizer, **padding)
    if variant == "plain":
        args = transformers.TrainingArguments(**args, **grouped)
        trainer = Trainer(**common, args=args, processing_class=tokenizer)
    elif variant in PACKAGE:
        args = DistillationArguments(
            **args | ({} if variant == "packed, random" else grouped),
            loss_type=["attention", "hidden", "embedding"] if intermediate else ["prediction"],
            teacher_cache_gb=20 if variant == "cached" else 0,
            padding_free=variant in ("packed", "packed, random"),
        )
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
rows_with_logits = cache_logits(load_teacher(), rows, tokenizer)
results = [{"phase": "logits, once", "hf_tinybert s": perf_counter() - start}]
datasets.config.HF_DATASETS_CACHE = tempfile.mkdtemp(prefix="epoch_")
start = perf_counter()
seconds = epoch("cached", intermediate=True, epochs=2)  # a run of one epoch caches nothing
results.append({"phase": "activations, once", "cached s": perf_counter() - start - seconds})
cached_bytes = sum(file.stat().st_size for file in Path(datasets.config.HF_DATASETS_CACHE).rglob("records*"))
for intermediate in (True, False):
    left_out = "plain" if intermediate else "cached"
    runs = {name: [] for name in ("hf_tinybert", *options.variants) if name != left_out}
    for _ in range(options.rounds):
        for name, seconds in runs.items():
            seconds.append(epoch(name, intermediate))
    row = {"phase": "intermediate" if intermediate else "prediction"}
    row |= {f"{name} s": median(seconds) for name, seconds in runs.items()}
    for name in list(runs)[1:]:
        row[f"{name} / hf_tinybert"] = median(a / b for a, b in zip(runs[name], runs["hf_tinybert"], strict=True))
    results.append(row)
shutil.rmtree(datasets.config.HF_DATASETS_CACHE)
names = list(dict.fromkeys(name for row in results[2:] for name in row))
print("| " + " | ".join(names) + " |", "|---" * len(names) + "|", sep="\n")
for row in results:
    print("| " + " | ".join(v if isinstance(v := row.get(n, ""), str) else f"{v:.3g}" for n in names) + " |")
print(f"Cached activations: {cached_bytes / len(rows):.0f} bytes a row.")
settings = {"bf16": options.bf16, "rows": len(rows), "cached bytes a row": cached_bytes / len(rows)}
Path("runs/epoch.json").write_text(json.dumps(settings | {"results": results}))
