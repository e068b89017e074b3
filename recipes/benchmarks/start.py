"""Time and peak memory of `create_student(init="teacher")`, by the number of calibration rows (random weights).

    python recipes/benchmarks/start.py [--rows 150 600] [--rounds 3] [--device cuda] [--memory] [--profile]
    python recipes/benchmarks/start.py --model_type mpnet --rows 600

A 12 × 768 teacher becomes a 4 × 312 student on rows of 6 to 20 tokens. `forward` is one forward pass of the teacher
over the rows, the least that a fit has to compute. `fit` is `create_student`. The variants take turns, times are
medians over rounds, and ratios are medians within a round. `cpu` is the processor time of the fit. `estimate` is what
`fit_cost` says before the fit. Memory is measured in one process for each number of rows. `--profile` prints where one
fit spends its time.
"""

import argparse
import cProfile
import json
import pstats
import subprocess
import sys
from operator import truediv
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence

from hf_tinybert import TINYBERT4, create_student
from hf_tinybert.students import fit_cost

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model_type", default="bert", help="of the teacher, for example mpnet or roberta-prelayernorm")
parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
parser.add_argument("--rows", type=int, nargs="+", default=[150, 600])
parser.add_argument("--shortest", type=int, default=6, help="number of tokens of the shortest row")
parser.add_argument("--longest", type=int, default=20, help="number of tokens of the longest row")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--memory", action="store_true", help="measure peak memory too")
parser.add_argument("--profile", action="store_true", help="print the functions that take longest")
parser.add_argument("--memory_of", type=int, help=argparse.SUPPRESS)
options = parser.parse_args()
cuda = options.device == "cuda"


def calibration_rows(count: int) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(options.shortest, options.longest + 1, (count,), generator=generator).tolist()
    return [{"input_ids": torch.randint(1000, 30000, (n,), generator=generator).tolist()} for n in lengths]


@torch.no_grad()
def forward(rows: list[dict]) -> None:
    by_length = sorted((row["input_ids"] for row in rows), key=len)
    for start in range(0, len(rows), 32):
        batch = pad_sequence([torch.tensor(ids) for ids in by_length[start : start + 32]], batch_first=True)
        teacher(input_ids=batch.to(options.device), attention_mask=(batch != 0).long().to(options.device))


def fit(rows: list[dict]) -> None:
    create_student(teacher, **TINYBERT4, calibration_dataset=rows)


def seconds(variant, rows: list[dict]) -> float:
    start = perf_counter()
    variant(rows)
    torch.cuda.synchronize() if cuda else None
    return perf_counter() - start


def peak_megabytes(count: int) -> float:
    command = [sys.executable, *sys.argv, "--memory_of", str(count)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.manual_seed(0)
config = transformers.AutoConfig.for_model(options.model_type, num_hidden_layers=12, hidden_size=768)
config.intermediate_size, config.num_attention_heads, config.vocab_size = 3072, 12, 30522
teacher = transformers.AutoModelForSequenceClassification.from_config(config).eval().to(options.device)
if options.memory_of:
    fit(calibration_rows(options.memory_of))
    resident = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    sys.exit(print(torch.cuda.max_memory_allocated() / 2**20 if cuda else int(resident) / 2**10))
results = []
for count in options.rows:
    rows = calibration_rows(count)
    lengths = [len(row["input_ids"]) for row in rows]
    turns, cpu = {"forward": [], "fit": []}, []
    for _ in range(options.rounds):
        turns["forward"].append(seconds(forward, rows))
        start = process_time()
        turns["fit"].append(seconds(fit, rows))
        cpu.append(process_time() - start)
    cost = fit_cost(create_student(teacher, **TINYBERT4, init="random"), teacher, lengths)
    row = {"rows": count, "tokens": sum(lengths), "threads": torch.get_num_threads()}
    row |= {f"{name} s": median(turn) for name, turn in turns.items()}
    row |= {"cpu s": median(cpu), "estimate s": cost.seconds}
    row["fit / forward"] = median(map(truediv, turns["fit"], turns["forward"]))
    if options.memory:
        row["MB"] = peak_megabytes(count)
    if options.profile:
        profile = cProfile.Profile()
        profile.runcall(fit, rows)
        pstats.Stats(profile).sort_stats("tottime").print_stats(16)
        pstats.Stats(profile).sort_stats("cumtime").print_stats("hf_tinybert", 20)
    results.append(row)
    if len(results) == 1:
        print("| " + " | ".join(row) + " |", "|---" * len(row) + "|", sep="\n")
    print("| " + " | ".join(f"{value:.4g}" for value in row.values()) + " |", flush=True)
Path("runs").mkdir(exist_ok=True)
Path("runs/start.json").write_text(json.dumps({"torch": torch.__version__, "rows": results}))
