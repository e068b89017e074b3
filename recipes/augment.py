"""TinyBERT's data augmentation of a GLUE task or of a file of yours, written as parquet.

    python recipes/augment.py --task cola --output augmented.parquet --vectors glove.6B.50d.txt
    python recipes/augment.py --data rows.parquet --text premise hypothesis --output augmented.parquet

Paper: TinyBERT, Algorithm 1 (p 0.4, K 15, N_a 20). A run that was killed continues with the same command.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hf_tinybert import GLUE, MaskedWords, WordVectors

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--task", choices=GLUE, help="augment the training split of this task of --data")
parser.add_argument("--data", default="nyu-mll/glue", help="Hub id or folder with --task, otherwise a parquet file")
parser.add_argument("--text", nargs="+", help="columns of text, if there is no --task")
parser.add_argument("--output", required=True)
parser.add_argument("--masked_lm", default="bert-base-uncased", help="Hub id or folder")
parser.add_argument("--vectors", nargs="+", type=Path, help="a GloVe text file, or a .npy file and its words")
parser.add_argument("--copies", type=int, default=20, help="N_a, number of variants of each text")
parser.add_argument("--p", type=float, default=0.4, help="probability that a word is replaced")
parser.add_argument("--k", type=int, default=15, help="number of candidates for each word")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--show", type=int, default=0, help="number of rows to print")
options = parser.parse_args()

if options.task:
    rows, columns = GLUE[options.task].load(options.data)["train"], GLUE[options.task].text
else:
    rows, columns = Dataset.from_parquet(options.data), options.text or ["text"]
model = AutoModelForMaskedLM.from_pretrained(options.masked_lm)
if torch.accelerator.is_available():
    model.to(torch.accelerator.current_accelerator())
tokenizer = AutoTokenizer.from_pretrained(options.masked_lm)
vectors = WordVectors.load(*options.vectors) if options.vectors else None
augmentation = MaskedWords(model, tokenizer, vectors, options.copies, options.p, options.k, options.seed)
augmented = augmentation(rows, columns)
augmented.to_parquet(options.output)
print(f"{len(rows)} rows became {len(augmented)}: {options.output}")
for row in augmented.select(range(min(options.show, len(augmented)))):
    print(" | ".join(row[name] for name in columns))
