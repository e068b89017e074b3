"""A masked language model for the augmentation, trained on plain text, for machines that cannot download one.

    python recipes/masked_lm.py --model folder/of/bert-tiny --data texts.parquet --max_steps 600 --output_dir runs/mlm

Prints the share of masked tokens that the model predicts correctly on held-out text. Uses `transformers.Trainer`; 15 %
of the tokens are masked.
"""

import argparse
from itertools import chain
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True, help="Hub id or folder; its masked-LM prediction head may be missing")
parser.add_argument("--data", required=True, help="parquet file with a column `text`")
parser.add_argument("--max_length", type=int, default=64)
parser.add_argument("--max_steps", type=int, default=600)
parser.add_argument("--batch_size", type=int, default=64)
parser.add_argument("--learning_rate", type=float, default=5e-4)
parser.add_argument("--output_dir", type=Path, default=Path("runs/masked_lm"))
options = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(options.model)


def pack(batch):
    tokens = list(chain.from_iterable(tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]))
    size = options.max_length - 2
    sequences = [tokens[start : start + size] for start in range(0, len(tokens) - size, size)]
    return {"input_ids": [[tokenizer.cls_token_id, *ids, tokenizer.sep_token_id] for ids in sequences]}


def accuracy(prediction):
    labelled = prediction.label_ids != -100
    return {"accuracy": (prediction.predictions == prediction.label_ids)[labelled].mean()}


data = load_dataset("parquet", data_files=options.data)["train"]
splits = data.map(pack, batched=True, remove_columns=data.column_names).train_test_split(256, seed=0)
trainer = Trainer(
    AutoModelForMaskedLM.from_pretrained(options.model),
    TrainingArguments(
        options.output_dir,
        max_steps=options.max_steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        warmup_steps=0.1,
        save_strategy="no",
        logging_steps=50,
        report_to=[],
        use_cpu=not torch.accelerator.is_available(),
    ),
    train_dataset=splits["train"],
    eval_dataset=splits["test"],
    data_collator=DataCollatorForLanguageModeling(tokenizer),
    processing_class=tokenizer,
    compute_metrics=accuracy,
    preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
)
trainer.train()
trainer.save_model()
print(f"Accuracy at masked tokens: {trainer.evaluate()['eval_accuracy']:.1%}")
