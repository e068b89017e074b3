"""A German TinyBERT with the vocabulary of a German teacher, started from the English TinyBERT.

    python recipes/tinybert_german.py --bf16
    accelerate launch --multi_gpu --num_processes 8 recipes/tinybert_german.py --batch_size 32 --bf16
    python recipes/tinybert_german.py --teacher folder/of/german/bert --student folder/of/english/student \\
        --data folder/of/texts --smoke

Model card: dvm1983/TinyBERT_General_4L_312D_de. Teacher dbmdz/bert-base-german-cased, student
huawei-noah/TinyBERT_General_4L_312D. Tokens in both vocabularies keep their rows of the embeddings. The other German
tokens start from the English tokens that they are split into. The text is German Wikipedia. The student learns
attention, hidden states, embeddings and the logits of masked tokens. The card gives no score (its author looked at
GermEval-2018), and its hyper-parameters are not known here; those below are TinyBERT's. --teacher and --data choose
any other language.
Hardware: not run at full size. Computed: a billion German words, 3 epochs, are 1.3e18 FLOP, or 210 minutes at 100
TFLOP/s. A run that was killed continues with the same command. The student is a masked language model in
OUTPUT_DIR/general, for `recipes/task_distillation.py --student`.
"""

import argparse
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import load_dataset
from transformers import AutoTokenizer, BertForMaskedLM, BertTokenizer

from hf_tinybert import general_distillation, transfer_vocabulary

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--teacher", default="dbmdz/bert-base-german-cased", help="Hub id or folder of a masked LM")
parser.add_argument("--student", default="huawei-noah/TinyBERT_General_4L_312D", help="Hub id or folder of a BERT")
parser.add_argument(
    "--data",
    nargs="+",
    default=["wikimedia/wikipedia", "20231101.de"],
    help="Hub id and configuration, or a folder, with a column `text`",
)
parser.add_argument("--losses", nargs="+", default=["attention", "hidden", "embedding", "prediction"])
parser.add_argument("--max_length", type=int, default=128)
parser.add_argument("--epochs", type=float, default=3)
parser.add_argument("--batch_size", type=int, default=256, help="rows a batch, in each process")
parser.add_argument("--learning_rate", type=float, default=5e-5)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--output_dir", type=Path, default=Path("runs/tinybert_german"))
parser.add_argument("--smoke", action="store_true", help="a quick check: few rows and steps")
options = parser.parse_args()

text, max_steps = load_dataset(*options.data, split="train"), -1
if options.smoke:
    text, options.max_length, options.batch_size, max_steps = text.take(32), 32, 8, 2
tokenizer, start = AutoTokenizer.from_pretrained(options.teacher), options.output_dir / "start"
if PartialState().is_main_process:
    english = BertForMaskedLM.from_pretrained(options.student)
    transfer_vocabulary(english, BertTokenizer.from_pretrained(options.student), tokenizer).save_pretrained(start)
PartialState().wait_for_everyone()
general_distillation(
    text,
    options.teacher,
    options.output_dir / "general",
    student=start,
    max_length=options.max_length,
    loss_type=options.losses,
    num_train_epochs=options.epochs,
    max_steps=max_steps,
    per_device_train_batch_size=options.batch_size,
    learning_rate=options.learning_rate,
    logging_steps=100,
    seed=options.seed,
    bf16=options.bf16,
    use_cpu=not torch.accelerator.is_available(),
    report_to=[],
)
