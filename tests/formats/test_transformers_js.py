"""transformers.js in Node finds the files of the layout, and answers as torch and ONNX Runtime do."""

import numpy as np
import pytest
import torch
from conftest import WORDS, bert_config, build, word_tokenizer
from javascript import pipeline, transformers_js  # noqa: F401
from scipy import special
from transformers import AutoTokenizer, BertForQuestionAnswering, BertForSequenceClassification
from transformers import BertForTokenClassification as BertForTokens
from transformers import pipeline as transformers_pipeline

from hf_tinybert.formats.layout import ONNX_FP16, ONNX_INT8
from hf_tinybert.formats.onnx_export import export_onnx, halve_onnx, load_onnx
from hf_tinybert.formats.onnx_int8 import quantize_onnx

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("transformers_js")]
TEXTS = [" ".join(WORDS[(3 * i + j * j) % 13] for j in range(2 + i % 6)) for i in range(20)]


def shipped(model_class, folder, **changes):
    tokenizer = word_tokenizer(folder)
    model = build(model_class, bert_config(2, 32, vocab_size=len(tokenizer), **changes)).eval()
    student = export_onnx(model, tokenizer, folder / "student").parents[1]
    model.save_pretrained(student)
    quantize_onnx(student, min_agreement=0)
    halve_onnx(student, min_agreement=0)
    return student


def probabilities(answers: list[list[dict]]) -> np.ndarray:
    """(rows, labels), labels in alphabetical order."""
    return np.array([[entry["score"] for entry in sorted(row, key=lambda entry: entry["label"])] for row in answers])


def by_onnx_runtime(path, folder, texts) -> np.ndarray:
    tokenizer, serve = AutoTokenizer.from_pretrained(folder), load_onnx(path)
    return np.concatenate([special.softmax(serve(tokenizer([text], return_tensors="np")), -1) for text in texts])


def test_classes_of_texts(tmp_path):
    folder = shipped(BertForSequenceClassification, tmp_path)
    torch_answers = probabilities(transformers_pipeline("text-classification", str(folder))(TEXTS, top_k=None))
    inputs = [[text] for text in TEXTS]
    for options in ({}, {"dtype": "fp32"}):  # the default finds its file too
        answers = pipeline("text-classification", folder, inputs, call={"top_k": 3}, **options)
        np.testing.assert_allclose(probabilities(answers), torch_answers, atol=1e-4)
    order = np.argsort(["negative", "positive", "neutral"])
    for dtype, file in (("q8", ONNX_INT8), ("fp16", ONNX_FP16)):
        answers = pipeline("text-classification", folder, inputs, call={"top_k": 3}, dtype=dtype)
        expected = by_onnx_runtime(folder / file, folder, TEXTS)[:, order]
        np.testing.assert_allclose(probabilities(answers), expected, atol=1e-4)
        assert np.abs(expected - torch_answers).max() > 1e-6


def test_classes_of_tokens(tmp_path):
    folder = shipped(BertForTokens, tmp_path)
    expected = transformers_pipeline("token-classification", str(folder))(TEXTS)
    for row, want in zip(pipeline("token-classification", folder, [[text] for text in TEXTS]), expected, strict=True):
        assert [(entry["word"], entry["entity"]) for entry in row] == [(e["word"], e["entity"]) for e in want]
        np.testing.assert_allclose([e["score"] for e in row], [e["score"] for e in want], atol=1e-4)


def test_answers_to_questions(tmp_path):
    folder = shipped(BertForQuestionAnswering, tmp_path, id2label={0: "start", 1: "end"})
    model = BertForQuestionAnswering.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = [["is it good", text] for text in TEXTS]
    answers = pipeline("question-answering", folder, inputs)
    agree = 0
    for (question, context), answer in zip(inputs, answers, strict=True):
        tokens = tokenizer(question, context, return_tensors="pt")
        with torch.no_grad():
            outputs = model(**tokens)
        context_tokens = [i for i, part in enumerate(tokens.sequence_ids(0)) if part == 1]
        start, end = (
            values[0, context_tokens].log_softmax(0) for values in (outputs.start_logits, outputs.end_logits)
        )
        pairs = [(float(start[i] + end[j]), i, j) for i in range(len(start)) for j in range(i, len(end))]
        _, first, last = max(pairs)
        words = tokenizer.decode(tokens.input_ids[0, context_tokens][first : last + 1])
        agree += words == answer["answer"]
        assert 0 <= answer["score"] <= 1
    assert agree == len(inputs)
