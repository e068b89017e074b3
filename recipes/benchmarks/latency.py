"""Latency and throughput of BERT-base, TinyBERT6 and TinyBERT4 (random weights) as users meet them.

    python recipes/benchmarks/latency.py [--lengths 128] [--threads 1] [--size 3 312 1200 12 --size 2 128 512 2]
    NODE_PATH=node_modules python recipes/benchmarks/latency.py --engines torch int8 node_int8 browser_int8

A batch of 1 gives milliseconds, p50 and p95 of all calls, without and with the tokenizer. A larger batch gives
sequences in a second. The engines of Python take turns, each after a pause, because the threads of the run before spin
for a while; those of JavaScript follow, a process each. `same engine` and `torch` say how many times faster a model is
than the first model in the same engine and in torch, by their medians.

Engines: torch, onnx, int8, fp16, openvino and openvino_int8 (extra `openvino`), node and node_int8 (the package
`@huggingface/transformers` in NODE_PATH), browser and browser_int8 (WebAssembly; `puppeteer-core` too, and Chromium).
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
import torch
from latency_javascript import in_browser, in_node
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from hf_tinybert import (
    TINYBERT4,
    TINYBERT6,
    export_onnx,
    export_openvino,
    halve_onnx,
    load_onnx,
    load_openvino,
    quantize_onnx,
    quantize_openvino,
)

PYTHON = ("torch", "onnx", "int8", "fp16", "openvino", "openvino_int8")
JAVASCRIPT = ("node", "node_int8", "browser", "browser_int8")
BERT_BASE = {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
VOCABULARY = 30522

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--size", type=int, nargs=4, action="append", help="layers, width, feed-forward, heads")
parser.add_argument("--engines", nargs="+", choices=PYTHON + JAVASCRIPT, default=["torch", "onnx", "int8"])
parser.add_argument("--lengths", type=int, nargs="+", default=[16, 64, 128])
parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
parser.add_argument("--batch_size", type=int, default=32, help="for the throughput")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--calls", type=int, default=20, help="calls a turn at batch 1, after two that are not counted")
parser.add_argument("--pause", type=float, default=0.5, help="seconds before a turn")
options = parser.parse_args()
sizes = {"BERT-base": BERT_BASE, "TinyBERT6": TINYBERT6, "TinyBERT4": TINYBERT4}
if options.size:
    sizes = {" × ".join(map(str, size)): dict(zip(BERT_BASE, size, strict=True)) for size in options.size}


def made_up_tokenizer(folder: Path) -> BertTokenizer:
    """A tokenizer with as many words as BERT's vocabulary."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [a + b + c + d for a in letters for b in letters for c in letters for d in "aeiou"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *words][:VOCABULARY]))
    return BertTokenizer(str(folder / "vocab.txt"))


def texts_of(tokenizer: BertTokenizer, count: int, length: int) -> list[str]:
    """Texts of `length` tokens, each word one."""
    words = [word for word in tokenizer.get_vocab() if word.isalpha()]
    return [" ".join(np.random.choice(words, length - 2)) for _ in range(count)]


def torch_engine(model) -> Callable:
    @torch.inference_mode()
    def run(inputs):
        return model(**{name: torch.from_numpy(inputs[name]) for name in inputs}).logits.numpy()

    return run


def write(folder: Path, model, tokenizer) -> dict[str, Path]:
    """The files of the engines of Python."""
    paths = {"onnx": export_onnx(model, tokenizer, folder, min_agreement=0)}
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in texts_of(tokenizer, 32, 32)]
    wanted = {
        name.replace("node", "onnx").replace("browser", "onnx").removeprefix("onnx_") for name in options.engines
    }
    if "int8" in wanted:
        paths["int8"] = quantize_onnx(folder, min_agreement=0).path
    if "fp16" in wanted:
        paths["fp16"] = halve_onnx(folder, min_agreement=0)
    if "openvino" in wanted:
        paths["openvino"] = export_openvino(folder, min_agreement=0)
    if "openvino_int8" in wanted:
        paths["openvino_int8"] = quantize_openvino(folder, rows, min_agreement=0)
    return paths


def load(engine: str, model, paths: dict[str, Path]) -> Callable:
    if engine == "torch":
        return torch_engine(model)
    return (load_openvino if engine.startswith("openvino") else load_onnx)(paths[engine])


def milliseconds(run: Callable, make_inputs: Callable, calls: int) -> list[float]:
    """Of each call, that of `make_inputs` included, after two that are not counted."""
    times = []
    for _ in range(calls + 2):
        start = perf_counter()
        run(make_inputs())
        times.append(1000 * (perf_counter() - start))
    return times[2:]


def measure_python(models: dict, tokenizer, threads: int) -> list[dict]:
    torch.set_num_threads(threads)
    engines = [engine for engine in PYTHON if engine in options.engines]
    runs = {(name, engine): load(engine, *models[name][:2]) for name in models for engine in engines}
    rows = []
    for length in options.lengths:
        one, many = (texts_of(tokenizer, count, length) for count in (1, options.batch_size))
        tokenise = partial(tokenizer, one, return_tensors="np")
        single, batch = (partial(dict, tokenizer(texts, return_tensors="np")) for texts in (one, many))
        times: dict = {key: ([], [], []) for key in runs}
        for _ in range(options.rounds):
            for key, run in runs.items():
                sleep(options.pause)
                alone, together, throughput = times[key]
                alone += milliseconds(run, single, options.calls)
                together += milliseconds(run, tokenise, options.calls)
                throughput += milliseconds(run, batch, 1)
        rows += [row(threads, length, *key, *values) for key, values in times.items()]
    return rows


def measure_javascript(models: dict, tokenizer, threads: int) -> list[dict]:
    cases = []
    for length in options.lengths:
        cases.append({"texts": texts_of(tokenizer, 1, length)})
        cases.append({"texts": texts_of(tokenizer, options.batch_size, length), "repeats": options.rounds})
    rows = []
    for engine in (engine for engine in JAVASCRIPT if engine in options.engines):
        dtype = "q8" if engine.endswith("int8") else "fp32"
        for name, (_, _, folder) in models.items():
            calls = options.rounds * options.calls
            if engine.startswith("node"):
                results = in_node(folder, dtype, threads, cases, calls)
            else:
                results = in_browser(folder, dtype, threads, cases, calls, Path(os.environ["NODE_PATH"]))
            for length, single, batch in zip(options.lengths, results[::2], results[1::2], strict=True):
                assert single["length"] == length
                rows.append(row(threads, length, name, engine, single["alone"], single["together"], batch["alone"]))
    return rows


def row(threads: int, length: int, name: str, engine: str, alone: list, together: list, batch: list) -> dict:
    values = {"threads": threads, "S": length, "model": name, "engine": engine}
    values |= {"p50 ms": np.percentile(alone, 50), "p95 ms": np.percentile(alone, 95)}
    values["with tokenizer ms"] = np.percentile(together, 50)
    values["sequences/s"] = 1000 * options.batch_size / np.median(batch)
    return values


with tempfile.TemporaryDirectory() as temporary:
    tokenizer = made_up_tokenizer(Path(temporary))
    models = {}
    for name, size in sizes.items():
        model = BertForSequenceClassification(BertConfig(**size)).eval()
        folder = Path(temporary, name)
        models[name] = (model, write(folder, model, tokenizer), folder)
    rows = []
    for threads in options.threads:
        rows += measure_python(models, tokenizer, threads) + measure_javascript(models, tokenizer, threads)
first = next(iter(sizes))
fastest = {(r["threads"], r["S"], r["model"], r["engine"]): r["p50 ms"] for r in rows}
for r in rows:
    for title, engine in (("× same engine", r["engine"]), ("× torch", "torch")):
        if (reference := fastest.get((r["threads"], r["S"], first, engine))) is not None:
            r[title] = reference / r["p50 ms"]
rows.sort(key=lambda r: (r["threads"], options.lengths.index(r["S"]), list(sizes).index(r["model"])))
print("| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|", sep="\n")
for r in rows:
    print("| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in r.values()) + " |")
Path("runs").mkdir(exist_ok=True)
Path("runs/latency.json").write_text(json.dumps({"torch": torch.__version__, "rows": rows}))
