"""Seconds of a training step, BERT-base → TinyBERT4 (random weights), beside other packages.

    pip install -e '.[benchmarks]'
    python recipes/benchmarks/peers.py [--device cuda --bf16] [--lengths 128 512 2048] [--memory]
    python recipes/benchmarks/peers.py --task sst2 --rows 1000 --rounds 1        # an epoch of real sentences

A step is both forward passes, losses, backward pass, clipping and AdamW, from the end of one optimizer step to the end
of the next, with the package's own data loading and logging. The table shows the mean over a turn without its first
step. Each variant has a process. They take turns, the table shows medians over rounds, and ratios are taken within a
round: to `hf_tinybert`, and of `relation` to `hf_tinybert relation`. `trainer` is the usual Trainer subclass.
`relation` is MiniLMv2's loss in the direct way of bertdistiller (which itself needs transformers 4). With --task a
turn is an epoch of batches of 32, padded to their longest row and timed from the very start; hf_tinybert groups rows
by length.
"""

import argparse
import json
import multiprocessing
import os
import sys
from importlib.metadata import distributions
from operator import truediv
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
import transformers
from datasets import Dataset
from torch.nn.functional import kl_div, mse_loss
from torch.optim.optimizer import register_optimizer_step_post_hook

from hf_tinybert import GLUE, TINYBERT4, DistillationArguments, DistillationTrainer, create_student

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--teacher_dtype", help="of hf_tinybert, e.g. bfloat16")
parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2048])
parser.add_argument("--tokens", type=int, default=1024, help="number of tokens in a batch")
parser.add_argument("--task", choices=GLUE, help="real rows instead of --lengths")
parser.add_argument("--data", default="nyu-mll/glue", help="of --task")
parser.add_argument("--rows", type=int, default=1000, help="of --task")
parser.add_argument("--tokenizer", default="bert-base-uncased", help="of --task")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--steps", type=int, default=3, help="steps in a turn; the first is not counted")
parser.add_argument("--memory", action="store_true", help="measure the peak memory of each process too")
parser.add_argument("--teacher_size", type=int, nargs=4, default=[12, 768, 3072, 12], help="as --size")
parser.add_argument("--size", type=int, nargs=4, default=[*TINYBERT4.values()], help="layers, width, inner, heads")
parser.add_argument("--peers", nargs="+", help="variants to run; default: all")
options = parser.parse_args()
if options.task:
    options.lengths, options.steps = [GLUE[options.task].max_length], options.rows // 32
    collator = transformers.DataCollatorWithPadding(transformers.AutoTokenizer.from_pretrained(options.tokenizer))
else:
    collator = transformers.default_data_collator
cuda, student_width, teacher_width = options.device == "cuda", options.size[1], options.teacher_size[1]
every = options.teacher_size[0] // options.size[0]  # hidden state m·every is read for m; 0 is the embedding output
names = ["bert.embeddings", *(f"bert.encoder.layer.{i}" for i in range(options.teacher_size[0]))]
modules = list(zip(names, names[::every], strict=False))
read = {"output_attentions": True, "output_hidden_states": True}


class Usual(transformers.Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with torch.no_grad():
            teacher = self.teacher(**inputs, **read)
        student = model(**inputs, **read)
        pairs = list(zip(student.attentions, teacher.attentions[every - 1 :: every], strict=True))
        pairs += zip(map(model.projection, student.hidden_states), teacher.hidden_states[::every], strict=True)
        return sum(mse_loss(*pair) for pair in pairs)


class Relation(transformers.Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with torch.no_grad():
            teacher = [scores.softmax(-1) for scores in self.relations(self.teacher, inputs)]
        student = [scores.log_softmax(-1) for scores in self.relations(model, inputs)]
        total = sum(kl_div(*pair, reduction="sum") for pair in zip(student, teacher, strict=True))
        return total / (3 * teacher[0][..., 0].numel())

    def relations(self, model, inputs):
        states = model(**inputs, output_hidden_states=True).hidden_states[-2]
        last, heads = model.bert.encoder.layer[-1].attention.self, options.teacher_size[3]
        vectors = [layer(states).unflatten(-1, (heads, -1)) for layer in (last.query, last.key, last.value)]
        return [v.transpose(1, 2) @ v.permute(0, 2, 3, 1) / v.shape[-1] ** 0.5 for v in vectors]


class ProjectedMSE(torch.nn.MSELoss):  # ModelOpt takes losses of two layers' outputs, and has no projections
    def __init__(self):
        super().__init__()
        self.projection = torch.nn.Linear(student_width, teacher_width)

    def forward(self, student_states, teacher_states):
        return super().forward(self.projection(student_states), teacher_states)


def batch_size(length: int) -> int:
    return 32 if options.task else max(1, options.tokens // length)


def models(length: int, attention: str = "sdpa"):
    sizes = [dict(zip(TINYBERT4, size, strict=True)) for size in (options.teacher_size, options.size)]
    config = {"max_position_embeddings": max(512, length), "attn_implementation": attention}
    teacher = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes[0], **config))
    teacher.to(options.device).eval()
    return teacher, create_student(teacher, **sizes[1], init="random")


def data(length: int) -> Dataset:
    if options.task:
        rows = GLUE[options.task].load(options.data)["train"].shuffle(0).select(range(options.rows))
        return GLUE[options.task].tokenize(rows, collator.tokenizer).remove_columns("labels")
    ids = torch.randint(1000, 30000, (max(1, options.tokens // length) * options.steps, length))
    rows = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
    return Dataset.from_dict(rows)


def arguments(length: int, kind=transformers.TrainingArguments, **changes):
    batch = {"per_device_train_batch_size": batch_size(length), "max_steps": options.steps}
    return kind(output_dir="runs/peers", save_strategy="no", report_to=[], use_cpu=not cuda, **batch, **changes)


def loop(length: int, parameters):
    """Batches and optimizer as Trainer makes them, for the peers that have none."""
    args, rows = arguments(length), data(length)
    batches = torch.utils.data.DataLoader(
        rows, args.per_device_train_batch_size, shuffle=True, collate_fn=lambda batch: dict(collator(batch))
    )
    return batches, torch.optim.AdamW(parameters, args.learning_rate, weight_decay=args.weight_decay, fused=True)


def hf_tinybert(length: int, *losses: str):
    teacher, student = models(length)
    order = {"train_sampling_strategy": "group_by_length"} if options.task else {}
    precision = {"bf16": options.bf16, "teacher_dtype": options.teacher_dtype}
    args = arguments(length, DistillationArguments, loss_type=list(losses), **precision, **order)
    return DistillationTrainer(student, args, collator, data(length), teacher_model=teacher).train


def subclass(length: int, kind: type[transformers.Trainer], attention: str):
    teacher, student = models(length, attention)
    student.projection = torch.nn.Linear(student_width, teacher_width).to(options.device)
    trainer = kind(student, arguments(length), collator, data(length))
    trainer.teacher = teacher
    return trainer.train


def textbrewer(length: int):
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    teacher, student = models(length, "eager")
    matches = []
    for m in range(len(student.bert.encoder.layer) + 1):
        linear = ["linear", student_width, teacher_width]
        hidden = {"feature": "hidden", "loss": "hidden_mse", "layer_S": m, "layer_T": m * every, "proj": linear}
        attention = {"feature": "attention", "loss": "attention_mse", "layer_S": m - 1, "layer_T": m * every - 1}
        matches += [hidden, attention] if m else [hidden]
    config = DistillationConfig(intermediate_matches=[{"weight": 1, **match} for match in matches])
    args = TrainingConfig(output_dir="runs/peers", device=options.device, ckpt_steps=options.steps)

    def adapt(batch, outputs):  # no logits and no labels: no losses on them
        return {"attention": outputs.attentions, "hidden": outputs.hidden_states}

    def turn():
        distiller = GeneralDistiller(args, config, teacher, student, adapt, adapt)
        batches, optimizer = loop(length, student.parameters())  # gets the projections as training starts
        with distiller:
            distiller.train(optimizer, batches, num_steps=options.steps, max_grad_norm=1.0, **read)

    return turn


def silverspoon(length: int):
    from silverspoon_kd import HolisticDistiller, TrainingArguments, create_alignments

    teacher, student = models(length)
    pairs = create_alignments(teacher, student, {f"^{name}$": f"^{student_name}$" for student_name, name in modules})
    args = arguments(length, TrainingArguments)
    rows = {"train_dataset": data(length), "data_collator": collator}
    return HolisticDistiller(student, teacher, pairs, args=args, **rows).train


def modelopt(length: int):
    import modelopt.torch.distill as mtd

    teacher, student = models(length)
    config = {"teacher_model": teacher, "criterion": {pair: ProjectedMSE() for pair in modules}}
    config["loss_balancer"] = mtd.StaticLossBalancer([1 / len(modules)] * len(modules))
    model = mtd.convert(student, mode=[("kd_loss", config)]).to(options.device)
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batches, optimizer = loop(length, parameters)

    def turn():
        for batch in batches:
            model(**{name: values.to(options.device) for name, values in batch.items()})
            model.compute_kd_loss().backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return turn


TINYBERT_LOSSES = ("attention", "hidden", "embedding")
VARIANTS = {  # what it computes, and what makes its turn (silverspoon and ModelOpt have no attention losses)
    "hf_tinybert": ("attention scores, hidden, embedding", lambda length: hf_tinybert(length, *TINYBERT_LOSSES)),
    "trainer": ("attention probabilities, hidden, embedding", lambda length: subclass(length, Usual, "eager")),
    "textbrewer": ("attention probabilities, hidden, embedding", textbrewer),
    "silverspoon": ("hidden, embedding; no attention", silverspoon),
    "modelopt": ("hidden, embedding; no attention", modelopt),
    "hf_tinybert relation": ("relation", lambda length: hf_tinybert(length, "relation")),
    # It reads no attention probabilities, so attention stays at transformers' default, as in bertdistiller.
    "relation": ("relation", lambda length: subclass(length, Relation, "sdpa")),
}
PACKAGES = {"textbrewer": "textbrewer", "silverspoon": "silverspoon-kd", "modelopt": "nvidia-modelopt"}


def work(variant: str, length: int, pipe) -> None:
    """Run a turn for each message, in a separate process; send back seconds a step and peak MB, or an error."""
    Path("/proc/self/oom_score_adj").write_text("1000")  # the kernel ends this process first
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 the peers' progress bars and logs
    transformers.logging.set_verbosity_error()
    turn, ends, wait = None, [], torch.cuda.synchronize if cuda else int
    register_optimizer_step_post_hook(lambda *_: (wait(), ends.append(perf_counter())))
    try:
        while pipe.recv():
            turn = turn or VARIANTS[variant][1](length)
            ends[:] = [perf_counter()] if options.task else []  # an epoch is timed from its very start
            # Trainer's bf16 covers the student's forward pass only, and the other packages have none. Cached casts
            # would outlive a step.
            lower = options.bf16 and not variant.startswith("hf_tinybert")
            with torch.autocast(options.device, torch.bfloat16, enabled=lower, cache_enabled=False):
                turn()
            assert len(ends) == options.steps + bool(options.task), f"{len(ends)} optimizer steps"
            resident = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**10
            peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else resident
            pipe.send(((ends[-1] - ends[0]) / (len(ends) - 1), peak))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}".splitlines()[0])


def start(variant: str, length: int):
    pipe, far_end = context.Pipe()
    process = context.Process(target=work, args=(variant, length, far_end), daemon=True)
    process.start()
    far_end.close()  # so that the pipe ends with the process
    return process, pipe


def ask(process, pipe) -> tuple[float, float] | str:
    try:
        pipe.send(True)
        return pipe.recv()
    except (EOFError, OSError):
        process.join()
        return f"ended with exit code {process.exitcode}"  # -9: killed because memory ran out


context = multiprocessing.get_context("fork")  # after the imports; this process computes nothing
installed = {package.name: package.version for package in distributions()}
wanted = {name: VARIANTS[name] for name in options.peers or VARIANTS}
missing = [name for name in wanted if name in PACKAGES and PACKAGES[name] not in installed]
chosen = [name for name in wanted if name not in missing]
columns = ["S", "B", "variant", "losses", "s/step", "ratio", *(["MB"] if options.memory else [])]
print("| " + " | ".join(columns) + " |", "|---" * len(columns) + "|", sep="\n", flush=True)
rows = []
for length in options.lengths:
    workers = {name: start(name, length) for name in chosen}
    turns, peaks, errors = {name: [] for name in chosen}, {}, {}
    for name in chosen * options.rounds:
        outcome = errors.get(name) or ask(*workers[name])
        if isinstance(outcome, str):
            errors[name] = outcome
        else:
            turns[name].append(outcome[0])
            peaks[name] = outcome[1]
    for process, _ in workers.values():
        process.kill()
        process.join()
    for name in chosen:
        base = "hf_tinybert relation" if "relation" in name else "hf_tinybert"
        both = base in chosen and not {name, base} & set(errors)
        cells = [options.task or length, batch_size(length), name, wanted[name][0]]
        cells += [errors.get(name) or median(turns[name])]
        cells += [median(map(truediv, turns[name], turns[base])) if both else None, peaks.get(name)]
        rows.append(dict(zip(columns, cells, strict=False)))
        shown = [f"{cell:.4g}" if isinstance(cell, float) else str(cell or "") for cell in rows[-1].values()]
        print("| " + " | ".join(shown) + " |", flush=True)
for name in missing:
    print(f"{name}: not installed (pip install {PACKAGES[name]})")
versions = {name: installed[name] for name in ("torch", "transformers", *PACKAGES.values()) if name in installed}
Path("runs").mkdir(exist_ok=True)
Path("runs/peers.json").write_text(
    json.dumps(vars(options) | {"versions": versions, "missing": missing, "rows": rows})
)
