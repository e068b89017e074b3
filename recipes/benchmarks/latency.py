"""Latency and throughput of BERT-base, TinyBERT6 and TinyBERT4 (random weights) in torch, ONNX Runtime and its int8.

    python recipes/benchmarks/latency.py [--lengths 128 32] [--rounds 5] [--size 3 312 1200 12 --size 2 128 512 2]

A batch of 1 gives milliseconds, p50 and p95 of all calls. A larger batch gives sequences in a second. The runs take
turns, each after a pause, because the threads of the run before spin for a while. `same engine` and `torch` say how
many times faster a model is than the first model in the same engine and in torch, as medians over rounds. All engines
use torch's number of threads (`OMP_NUM_THREADS`).
"""

import argparse
import json
import tempfile
from itertools import pairwise
from operator import truediv
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from hf_tinybert import TINYBERT4, TINYBERT6, export_onnx, load_onnx, quantize_onnx

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--size", type=int, nargs=4, action="append", help="layers, width, feed-forward, heads")
parser.add_argument("--lengths", type=int, nargs="+", default=[128, 32])
parser.add_argument("--batch_size", type=int, default=32, help="for the throughput")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--calls", type=int, default=20, help="calls a turn at batch 1, after two that are not counted")
parser.add_argument("--pause", type=float, default=0.5, help="seconds before a turn")
options = parser.parse_args()
BERT_BASE = {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
sizes = {"BERT-base": BERT_BASE, "TinyBERT6": TINYBERT6, "TinyBERT4": TINYBERT4}
if options.size:
    sizes = {" × ".join(map(str, size)): dict(zip(BERT_BASE, size, strict=True)) for size in options.size}


def torch_engine(model):
    @torch.inference_mode()
    def run(inputs):
        return model(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits.numpy()

    return run


def engines(size: dict) -> dict:
    model = BertForSequenceClassification(BertConfig(**size)).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(model, BertTokenizer(), folder, min_agreement=0)
        return {
            "torch": torch_engine(model),
            "onnx": load_onnx(path),
            "int8": load_onnx(quantize_onnx(folder, min_agreement=0)),
        }


def milliseconds(run, inputs: dict, calls: int) -> list[float]:
    sleep(options.pause)
    for _ in range(2):
        run(inputs)
    stamps = [perf_counter()]
    for _ in range(calls):
        run(inputs)
        stamps.append(perf_counter())
    return [1000 * (end - start) for start, end in pairwise(stamps)]


runs = {(name, engine): run for name, size in sizes.items() for engine, run in engines(size).items()}
first = next(iter(sizes))
rows = []
for length in options.lengths:
    turns: dict = {(run, batch): [] for run in runs for batch in (1, options.batch_size)}
    for _ in range(options.rounds):
        for (key, batch), times in turns.items():
            inputs = {
                "input_ids": np.random.randint(1000, 30000, (batch, length)),
                "attention_mask": np.ones((batch, length), dtype=np.int64),
                "token_type_ids": np.zeros((batch, length), dtype=np.int64),
            }
            times.append(milliseconds(runs[key], inputs, options.calls if batch == 1 else 1))
    medians = {run: [median(times) for times in turns[run, 1]] for run in runs}
    for name, engine in runs:
        times = np.concatenate(turns[(name, engine), 1])
        row = {"S": length, "model": name, "engine": engine}
        row |= {"p50 ms": np.percentile(times, 50), "p95 ms": np.percentile(times, 95)}
        row["sequences/s"] = 1000 * options.batch_size / np.median(turns[(name, engine), options.batch_size])
        by_round = medians[name, engine]
        row["× same engine"] = median(map(truediv, medians[first, engine], by_round))
        row["× torch"] = median(map(truediv, medians[first, "torch"], by_round))
        rows.append(row)
print("| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|", sep="\n")
for row in rows:
    print("| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
Path("runs").mkdir(exist_ok=True)
report = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}
Path("runs/latency.json").write_text(json.dumps(report))
