"""Peak memory of the losses on attention and of their direct S×S forms, by sequence length, forward and backward.

    python recipes/benchmarks/memory.py [--lengths 512 1024 2048 4096 8192] [--device cuda]

One layer, B = 1, 12 attention heads of size 26 (student) and 64 (teacher), no autocast. `attention` is
`attention_score_mse`, `relation` is `relation_kl`. `direct` holds the scores, or their log-softmax, of both models and
leaves the rest to autograd. Each form runs in a separate process. Memory of the inputs is not counted. `ms` is the
median of 3 in the same process.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from hf_tinybert.losses import attention_score_mse, relation_kl, score_matrix_mse

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
options = parser.parse_args()
cuda = options.device == "cuda"


def direct_attention(student, teacher):
    scores = (x @ x.mT * x.shape[-1] ** -0.5 for x in (student, teacher))
    return score_matrix_mse(*scores)


def direct_relation(student, teacher):
    student_log, teacher_log = ((x @ x.mT * x.shape[-1] ** -0.5).log_softmax(-1) for x in (student, teacher))
    total = torch.nn.functional.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
    return total / student_log[..., 0].numel()


LOSSES = {
    "attention": lambda student, teacher: attention_score_mse(student, student, teacher, teacher),
    "direct attention": direct_attention,
    "relation": relation_kl,
    "direct relation": direct_relation,
}


def peak_bytes() -> int:
    if cuda:
        return torch.cuda.max_memory_allocated()
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def measure(name: str, length: int) -> None:
    """Print megabytes over the inputs and milliseconds of one loss."""
    student = torch.randn(1, 12, length, 26, device=options.device, requires_grad=True)
    teacher = torch.randn(1, 12, length, 64, device=options.device)
    LOSSES[name](student[:, :, :8], teacher[:, :, :8]).sum().backward()  # loads libraries before the count
    before, times = peak_bytes(), []
    for _ in range(3):
        student.grad = None
        start = perf_counter()
        LOSSES[name](student, teacher).sum().backward()
        torch.cuda.synchronize() if cuda else None
        times.append(perf_counter() - start)
    print(json.dumps({"MB": (peak_bytes() - before) / 1e6, "ms": 1000 * median(times)}))


if options.one:
    sys.exit(measure(options.one[0], int(options.one[1])))
rows = []
for length in options.lengths:
    row = {"S": length}
    for name in LOSSES:
        run = subprocess.run(
            [sys.executable, *sys.argv, "--one", name, str(length)], check=True, capture_output=True, text=True
        )
        row |= {f"{name} {unit}": value for unit, value in json.loads(run.stdout).items()}
    if not rows:
        print("| " + " | ".join(row) + " |", "|---" * len(row) + "|", sep="\n")
    print("| " + " | ".join(f"{value:.4g}" for value in row.values()) + " |", flush=True)
    rows.append(row)
Path("runs").mkdir(exist_ok=True)
Path("runs/memory.json").write_text(json.dumps({"torch": torch.__version__, "device": options.device, "rows": rows}))
