"""Words and tags: the token that has the tag of a word, truncation, the scores, and a whole run."""

import json
import random

import numpy as np
import pyarrow as pa
import pytest
from conftest import WORDS, bert_config, build, word_tokenizer
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from short_runs import QUICK, SIZE
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForTokenClassification,
    BertModel,
    EvalPrediction,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from hf_tinybert import TokenClassification, read_conll, task_distillation

TAGS = ("O", "B-A", "I-A", "B-B", "I-B")
POS = ("NOUN", "VERB", "X")


def dataset(words, tags, names=TAGS) -> DatasetDict:
    features = {"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=list(names)))}
    rows = Dataset.from_dict({"tokens": words, "ner_tags": tags}, features=Features(features))
    return DatasetDict(train=rows, validation=rows)


def sentences(count=20, seed=0, names=TAGS) -> DatasetDict:
    generator = random.Random(seed)
    known = ["good", "dull", "player", "##er", "filmer", "?!", "a-the", "unseen"]
    words = [generator.choices(known, k=1 + i % 7) for i in range(count)]
    return dataset(words, [[len(word) % len(names) for word in row] for row in words], names)


def by_word_ids(rows, tokenizer, max_length):
    """The usual way, for a tokenizer that takes words one by one without changing them."""
    for row in rows:
        encoded = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=max_length)
        before, labels = None, []
        for word in encoded.word_ids():
            labels.append(-100 if word in (None, before) else row["ner_tags"][word])
            before = word
        yield encoded["input_ids"], labels


@pytest.mark.parametrize("max_length", [512, 6])
def test_a_tag_stands_at_the_first_token_of_its_word(tmp_path, max_length):
    task, data = TokenClassification.from_dataset(sentences(), max_length=max_length)
    tokenizer = word_tokenizer(tmp_path)
    rows = task.tokenize(data["train"], tokenizer)
    expected = list(by_word_ids(data["train"], tokenizer, max_length))
    assert list(zip(rows["input_ids"], rows["labels"], strict=True)) == expected
    assert max(map(len, rows["input_ids"])) <= max_length
    assert set(rows.column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels"}


def untrimmed(texts) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose offsets take the space before a word in, as ModernBERT's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize(
    "train",
    [
        lambda texts: RobertaTokenizer().train_new_from_iterator(texts, 300),
        lambda texts: XLMRobertaTokenizer().train_new_from_iterator(texts, 60),
        untrimmed,
    ],
    ids=["byte-level", "unigram", "byte-level untrimmed"],
)
def test_words_keep_their_leading_space(train):
    task, data = TokenClassification.from_dataset(sentences())
    texts = [" ".join(words) for words in data["train"]["tokens"]]
    tokenizer = train(texts)
    rows = task.tokenize(data["train"], tokenizer)
    assert rows["input_ids"][:] == tokenizer(texts)["input_ids"]
    for row, tokens in zip(data["train"], rows, strict=True):
        texts = tokenizer.convert_ids_to_tokens(tokens["input_ids"])
        first = [text for text, label in zip(texts, tokens["labels"], strict=True) if label != -100]
        assert [label for label in tokens["labels"] if label != -100] == row["ner_tags"]
        assert all(word.startswith(text.lstrip("Ġ▁")) for word, text in zip(row["tokens"], first, strict=True))
        assert all(text[0] in "Ġ▁" for text in first[1:])


def test_words_without_a_token_have_no_label(tmp_path):
    task, data = TokenClassification.from_dataset(dataset([["good", "\u200b", "film"]], [[1, 2, 3]]))
    assert task.tokenize(data["train"], word_tokenizer(tmp_path))["labels"][:] == [[-100, 1, 3, -100]]


def logits_of(tags, names=TAGS) -> np.ndarray:
    """(B, S, C), largest at these tags."""
    return np.eye(len(names))[np.asarray(tags)] * 3 - 1


def test_scores_are_over_words():
    task = TokenClassification("ner", labels=TAGS)
    #          B-A I-A  O            B-A  O
    labels = [[-100, 1, 2, -100, 0], [1, 0, -100, -100, -100]]
    predicted = [[4, 1, 2, 3, 0], [0, 3, 3, 3, 3]]
    scores = task.compute_metrics(EvalPrediction(logits_of(predicted), np.array(labels)))
    assert scores == pytest.approx(
        {"accuracy": 3 / 5, "precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "score": 1 / 2}
    )


def test_entities_that_truncation_removes_count_as_missed(tmp_path):
    words, tags = ["film", "good", "bad", "book"], [1, 0, 1, 2]
    task, data = TokenClassification.from_dataset(dataset([words], [tags]), max_length=4)
    tokens = task.tokenize(data["validation"], word_tokenizer(tmp_path))
    (labels,) = tokens["labels"]
    assert labels == [-100, 1, 0, -100]
    prediction = EvalPrediction(logits_of([[0, 1, 0, 0]]), np.array([labels]))
    scorer = task.scorer(data["validation"], tokens)
    scores = scorer(prediction)
    assert (scores["precision"], scores["recall"], scores["f1"]) == pytest.approx((1, 1 / 2, 2 / 3))
    twice = scorer.summarise(scorer.score_examples(prediction)[[0, 0]])
    assert (twice["precision"], twice["recall"]) == pytest.approx((1, 2 / 3))  # the one that is gone is gone once


def test_parts_of_speech_are_scored_by_accuracy():
    task, _ = TokenClassification.from_dataset(sentences(names=POS))
    scores = task.compute_metrics(EvalPrediction(logits_of([[0, 1, 2]], POS), np.array([[0, 2, -100]])))
    assert scores == {"accuracy": 0.5, "score": 0.5}


@pytest.mark.parametrize(
    "arrow_type", [pa.list_(pa.string()), pa.list_(pa.large_string()), pa.large_list(pa.string())], ids=str
)
def test_tags_that_are_strings(arrow_type):
    rows = sentences()["train"]
    names = [[TAGS[tag] for tag in row] for row in rows["ner_tags"]]
    rows = Dataset(pa.table({"words": rows["tokens"][:], "ner": pa.array(names, arrow_type)}))
    strings = DatasetDict(train=rows, validation=rows)
    task, data = TokenClassification.from_dataset(strings, "words", "ner")
    assert task.labels == ("B-A", "I-A", "I-B", "O")  # those that occur
    assert [[task.labels[tag] for tag in row] for row in data["train"]["ner"]] == names
    assert task.columns == ("words", "ner")


@pytest.mark.parametrize(
    ("data", "options", "says"),
    [
        (sentences(), {"tokens": "words"}, "no column"),
        (sentences(), {"validation": ("validation", "test")}, "no split"),
        (dataset([["a", "b"]], [[0]]), {}, "Row 0 of task/train has 2 words and 1 tags"),
        (sentences().cast_column("ner_tags", List(Value("int64"))), {}, "lists? of strings or of ClassLabels"),
        (
            DatasetDict(
                dict.fromkeys(("train", "validation"), Dataset.from_dict({"tokens": [["a"]], "ner_tags": [0]}))
            ),
            {},
            "lists? of strings or of ClassLabels",
        ),
    ],
)
def test_what_is_wrong_with_the_data_is_said(data, options, says):
    with pytest.raises(ValueError, match=says):
        TokenClassification.from_dataset(data, **options)


def test_tags_in_another_order_are_refused():
    task, data = TokenClassification.from_dataset(sentences())
    other = sentences(names=(*TAGS[::-1],))
    with pytest.raises(ValueError, match=r"names its labels.*head_labels"):
        task.check(DatasetDict(train=data["train"], validation=other["validation"]))


def test_a_conll_file(tmp_path):
    text = "-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\nPeter\tB-PER\nBlackburn\tI-PER"
    (tmp_path / "train.txt").write_text(text)
    rows = read_conll(tmp_path / "train.txt")
    assert rows[:] == {
        "tokens": [["EU", "rejects"], ["Peter", "Blackburn"]],
        "ner_tags": [["B-ORG", "O"], ["B-PER", "I-PER"]],
    }


def test_from_an_encoder_to_a_student(tmp_path):
    tokenizer = word_tokenizer(tmp_path)
    tokenizer.save_pretrained(tmp_path / "base")
    build(BertModel, bert_config(4, 32, vocab_size=len(tokenizer))).save_pretrained(tmp_path / "base")
    words = [[WORDS[(i * j) % 13] for j in range(1, 3 + i % 5)] for i in range(24)]
    task, data = TokenClassification.from_dataset(
        dataset(words, [[WORDS.index(word) % 5 for word in row] for row in words])
    )
    fast = {"fine_tuning": {"num_train_epochs": 20, "learning_rate": 5e-3}, "prediction": {"learning_rate": 1e-3}}
    run = {"student": SIZE, **fast, **QUICK}
    results = task_distillation(task, data, str(tmp_path / "base"), tmp_path / "out", **run)
    assert results["teacher"]["validation"]["f1"] > 0.9  # a tag depends on its word alone
    assert set(results["student"]["validation"]) == {"accuracy", "precision", "recall", "f1", "score"}
    student, loading = AutoModelForTokenClassification.from_pretrained(
        tmp_path / "out/student", output_loading_info=True
    )
    assert not any(loading.values())
    assert tuple(student.config.id2label.values()) == TAGS
    log = json.loads((tmp_path / "out/prediction/trainer_state.json").read_text())["log_history"]
    losses = [entry["prediction_loss"] for entry in log if "prediction_loss" in entry]
    assert sum(losses[3:]) < sum(losses[:3])  # of the second epoch and of the first
