"""What errors about vocabularies advise is done here, and training starts."""

import re

import pytest
import torch
from conftest import VOCAB, bert_config, build, pad, rows, word_tokenizer
from short_runs import arguments
from transformers import BertForSequenceClassification, BertTokenizer

from hf_tinybert import DistillationTrainer, create_student, transfer_vocabulary, trim_vocabulary


@pytest.fixture
def tokenizer(tmp_path):
    return word_tokenizer(tmp_path)


def train(folder, student, teacher, tokenizer=None):
    trainer = DistillationTrainer(
        student, arguments(folder / "run"), pad, texts(tokenizer), processing_class=tokenizer, teacher_model=teacher
    )
    trainer.train()
    assert all(torch.isfinite(parameter).all() for parameter in student.parameters())


def texts(tokenizer):
    if tokenizer is None:
        return rows(8).map(lambda row: {"input_ids": [index % 20 for index in row["input_ids"]]})
    encoded = tokenizer(["a good film", "the book is dull ."])
    return [{name: encoded[name][i] for name in encoded} for i in range(2)]


@pytest.mark.parametrize(("rows_of_student", "rows_of_teacher"), [(50, 56), (56, 50), (50, 64)])
def test_tables_that_are_padded_differently_are_resized(tmp_path, rows_of_student, rows_of_teacher):
    student, teacher = (
        build(BertForSequenceClassification, bert_config(layers, 16, vocab_size=size), layers)
        for layers, size in ((2, rows_of_student), (4, rows_of_teacher))
    )
    with pytest.raises(ValueError, match="resize_token_embeddings") as error:
        train(tmp_path, student, teacher)
    advice = re.search(r"student\.resize_token_embeddings\((\d+)\)", str(error.value))
    student.resize_token_embeddings(int(advice[1]))
    train(tmp_path, student, teacher)


def test_another_vocabulary_is_transferred_or_the_student_made_from_the_teacher(tmp_path, teacher, tokenizer):
    """A teacher of many more tokens, whose table is padded as well."""
    words = [*tokenizer.get_vocab(), *(f"word{index}" for index in range(200))]
    larger = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    teacher = build(BertForSequenceClassification, bert_config(4, 32, vocab_size=224), 3)
    student = build(BertForSequenceClassification, bert_config(2, 16), 4)
    with pytest.raises(ValueError, match=r"create_student\(teacher, \.\.\.\).*transfer_vocabulary") as error:
        train(tmp_path, student, teacher, larger)
    assert "resize_token_embeddings" not in str(error.value)  # which would make tokens of nothing
    train(tmp_path, create_student(teacher, num_hidden_layers=2), teacher, larger)
    transferred = transfer_vocabulary(student, tokenizer, larger)
    with pytest.raises(ValueError, match=r"student\.resize_token_embeddings\(224\)"):
        train(tmp_path, transferred, teacher, larger)
    transferred.resize_token_embeddings(224)
    train(tmp_path, transferred, teacher, larger)


def test_tokens_with_other_ids_are_transferred_or_the_teacher_trimmed(tmp_path, student, teacher, tokenizer):
    ids = tokenizer.get_vocab()
    other = BertTokenizer(vocab={token: -index % len(tokenizer) for token, index in ids.items()})
    for part in (teacher, other):
        part.save_pretrained(tmp_path / "teacher")
    folder = str(tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"transfer_vocabulary.*trim_vocabulary"):
        train(tmp_path, student, folder, tokenizer)
    transferred = transfer_vocabulary(student, tokenizer, other)
    transferred.resize_token_embeddings(VOCAB)
    train(tmp_path, transferred, folder, other)
    trimmed, fewer = trim_vocabulary(teacher, other, ["a good film", "the book is dull ."])
    train(tmp_path, create_student(trimmed, num_hidden_layers=2), trimmed, fewer)
