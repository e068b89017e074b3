"""Sentences augmented in a second: `MaskedWords` beside one masked-LM pass for each word, on the same machine.

    python recipes/benchmarks/augmentation.py --task sst2 [--masked_lm bert-base-uncased] [--vectors glove.6B.50d.txt]

`word by word` is Algorithm 1 as usually written. It runs one forward pass of the sentence for each word, with that
word masked and the prediction head at every position, and one product with all word vectors. Both variants draw the
same variants of the same sentences; the share that agrees is printed. They take turns, and the table shows medians.
"""

import argparse
import json
import random
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig

from hf_tinybert import GLUE, MaskedWords, WordVectors
from hf_tinybert.tasks.masked_words import WORD, replace_words, whole_words

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--task", choices=GLUE, default="sst2")
parser.add_argument("--data", default="nyu-mll/glue")
parser.add_argument("--masked_lm", default="bert-base-uncased", help="Hub id or folder")
parser.add_argument("--bert_base", action="store_true", help="random weights of BERT-base's size")
parser.add_argument("--vectors", nargs="+", type=Path)
parser.add_argument("--sentences", type=int, default=200)
parser.add_argument("--copies", type=int, default=20)
parser.add_argument("--rounds", type=int, default=3)
options = parser.parse_args()

device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
tokenizer = AutoTokenizer.from_pretrained(options.masked_lm)
model = AutoModelForMaskedLM.from_pretrained(options.masked_lm)
if options.bert_base:
    model = AutoModelForMaskedLM.from_config(BertConfig(vocab_size=model.config.vocab_size))
model = model.to(device).eval()
vectors = WordVectors.load(*options.vectors) if options.vectors else None
task = GLUE[options.task]
texts = task.load(options.data)["train"].select(range(options.sentences))[task.text[0]]
augmentation = MaskedWords(model, tokenizer, vectors, options.copies)
forbidden = torch.full((model.config.vocab_size,), -torch.inf, device=device)
forbidden[whole_words(tokenizer)] = 0
k = min(augmentation.k, len(whole_words(tokenizer)) - 1)


@torch.inference_mode()
def one_pass_a_word(texts: list[str]) -> list[list[str]]:
    return [variants_of(text) for text in texts]


def variants_of(text: str) -> list[str]:
    encoded = tokenizer(text, return_offsets_mapping=True, truncation=True)
    positions = {span: position for position, span in enumerate(encoded["offset_mapping"])}
    candidates = {}
    for word in WORD.finditer(text):
        position = positions.get(word.span())
        if word.group().lower() in augmentation.stop_words:
            continue
        if position is None or encoded["input_ids"][position] == tokenizer.unk_token_id:
            near = vectors.nearest([word.group().lower()], augmentation.k) if vectors else {}
            candidates[word.span()] = [name for name in near.get(word.group().lower(), []) if WORD.fullmatch(name)]
            continue
        ids = torch.tensor([encoded["input_ids"]], device=device)
        ids[0, position] = tokenizer.mask_token_id
        logits = model(ids).logits[0, position] + forbidden
        logits[encoded["input_ids"][position]] = -torch.inf
        names = [tokenizer.decode([token]).strip() for token in logits.topk(k).indices.tolist()]
        candidates[word.span()] = names
    return replace_words(
        text, candidates, options.copies, augmentation.p, random.Random(f"{augmentation.seed} {text}")
    )


def seconds(function, texts: list[str]) -> tuple[float, list[list[str]]]:
    start = perf_counter()
    result = function(texts)
    return perf_counter() - start, result


times: dict[str, list[float]] = {"word by word": [], "this package": []}
for _ in range(options.rounds):
    # A new one each time, because it caches the neighbours of words.
    augmentation = MaskedWords(model, tokenizer, vectors, options.copies)
    taken, batched = seconds(augmentation.variants, texts)
    times["this package"].append(taken)
    taken, word_by_word = seconds(one_pass_a_word, texts)
    times["word by word"].append(taken)
agree = sum(a == b for a, b in zip(batched, word_by_word, strict=True)) / len(texts)
row = {name: options.sentences / median(values) for name, values in times.items()}
row |= {"ratio": row["this package"] / row["word by word"], "same variants": agree}
print("| " + " | ".join(row) + " |", "|---" * len(row) + "|", sep="\n")
print("| " + " | ".join(f"{value:.4g}" for value in row.values()) + " |")
Path("runs").mkdir(exist_ok=True)
Path("runs/augmentation.json").write_text(json.dumps(row))
