"""Each kind of prediction head against its definition, computed row by row in float64 with numpy."""

import numpy as np
import pytest
import torch
from conftest import bert_config, build
from tiny_architectures import forgotten
from transformers import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

from hf_tinybert.models.families import subclasses
from hf_tinybert.models.prediction_heads import (
    Choices,
    Classes,
    Labels,
    MaskedTokens,
    PredictionHead,
    Regression,
    Spans,
    TokenClasses,
    prediction_head_of,
)

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 1, 0]])
PREDICTED = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]])  # a subset of the real tokens
SHAPES = {  # of the logits; a kind for sequences as well as tokens has both
    Classes: [(3, 4)],
    TokenClasses: [(3, 5, 4)],
    Regression: [(3, 1), (3, 2), (3, 5, 1)],
    Labels: [(3, 4)],
    Spans: [(3, 5, 2)],
    Choices: [(3, 4)],
    MaskedTokens: [(3, 5, 7)],
}
CASES = [(kind, shape) for kind, shapes in SHAPES.items() for shape in shapes]


def kinds():
    """The kinds of the package, not those that a test defines."""
    return [kind for kind in subclasses(PredictionHead) if kind.__module__.startswith("hf_tinybert")]


def softmax(z):
    weights = np.exp(z - z.max())
    return weights / weights.sum()


def cross_entropy(z, t):
    return -(softmax(t) * np.log(softmax(z))).sum()


def binary_cross_entropy(z, t):
    q, p = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-t))
    return -(p * np.log(q) + (1 - p) * np.log(1 - q)).mean()


def expected_loss(kind, z, t, temperature, mask):
    """The soft loss of one row; `mask` has its tokens whose logits are predictions."""
    if kind is Spans:
        return np.mean([cross_entropy(z[mask, end] / temperature, t[mask, end] / temperature) for end in (0, 1)])
    if kind is Regression:
        squared = np.square(z - t).mean(-1)
        return squared[mask].mean() if squared.ndim else squared
    distance = binary_cross_entropy if kind is Labels else cross_entropy
    if z.ndim == 1:
        return distance(z / temperature, t / temperature)
    values = [distance(z[i] / temperature, t[i] / temperature) for i in np.flatnonzero(mask)]
    return np.mean(values) if values else 0.0


def draw(shape, seed=0):
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_every_kind_is_tested():
    assert {*SHAPES} == {*kinds()}


@pytest.mark.parametrize("kind", kinds())
def test_a_kind_describes_itself(kind):
    head = kind()
    assert head.name
    assert head.name not in {other.name for other in kinds() if other is not kind}
    assert head.label_names
    assert kind.__doc__


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_the_soft_loss_and_its_gradient(kind, shape, temperature):
    head, z, t = kind(), draw(shape, 1), draw(shape, 2)
    labels = torch.where(PREDICTED.bool(), 1, -100) if kind is MaskedTokens else None
    mask = head.mask(labels, MASK)
    rows = (PREDICTED if kind is MaskedTokens else MASK).bool().numpy()
    z.requires_grad_()
    losses = head.soft_loss(z, t, temperature, mask)
    expected = [
        expected_loss(kind, *pair, temperature, row)
        for *pair, row in zip(z.detach().double().numpy(), t.double().numpy(), rows, strict=True)
    ]
    assert losses.dtype == torch.float32
    np.testing.assert_allclose(losses.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    losses.sum().backward()
    assert torch.isfinite(z.grad).all()
    if len(shape) == 3:  # nothing is learned where there is no prediction
        assert not z.grad[~torch.from_numpy(rows)].any()
    reached = torch.autograd.grad(head.soft_loss(t.requires_grad_(), t.detach(), temperature, mask).sum(), t)[0]
    assert reached.abs().max() < 1e-6  # the teacher's own logits are the minimum


@pytest.mark.parametrize("kind", kinds())
def test_padding_does_not_change_the_soft_loss(kind):
    shape = SHAPES[kind][-1]
    if len(shape) == 2:
        assert kind in (Classes, Labels, Choices)
        return
    head, z, t = kind(), draw(shape, 1), draw(shape, 2)
    expected = head.soft_loss(z, t, 1.0, MASK)
    other = torch.where(MASK.bool()[..., None], z, z + 100)
    torch.testing.assert_close(head.soft_loss(other, t, 1.0, MASK), expected)


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_entropy(kind, shape):
    head, z = kind(), draw(shape, 3).double()
    if kind is Regression:
        with pytest.raises(ValueError, match="teacher_logits='mean'"):
            head.entropy(z, MASK)
        return
    entropy = head.entropy(z, MASK).expand(shape).numpy()
    logits, rows = z.numpy(), MASK.bool().numpy()
    for index in np.ndindex(shape[:-1]):
        if kind is Spans:
            row = rows[index[0]]
            expected = [cross_entropy(logits[index[0], row, end], logits[index[0], row, end]) for end in (0, 1)]
        elif kind is Labels:
            p = 1 / (1 + np.exp(-logits[index]))
            expected = -(p * np.log(p) + (1 - p) * np.log(1 - p))
        else:
            expected = cross_entropy(logits[index], logits[index])
        np.testing.assert_allclose(entropy[index], expected, rtol=1e-9)


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_what_is_packed_is_unpacked(kind, shape):
    head, logits = kind(), draw(shape, 4)
    packed = head.pack(logits, MASK)
    real = MASK.bool()
    assert [len(row) for row in packed] == (real.sum(1).tolist() if len(shape) == 3 else [shape[1]] * 3)
    expected = logits * real[..., None] if len(shape) == 3 else logits
    assert torch.equal(head.unpack([torch.from_numpy(row) for row in packed], MASK), expected)
    if len(shape) == 3:
        with pytest.raises(ValueError, match="other numbers of tokens"):
            head.unpack([torch.from_numpy(row) for row in reversed(packed)], MASK)


def test_masked_tokens_are_not_cached():
    assert [kind for kind in kinds() if not kind.cacheable] == [MaskedTokens]


def test_decisions_of_classes_leave_out_what_has_no_label():
    logits, labels = draw((3, 5, 4)).numpy(), np.where(MASK.numpy() == 1, 2, -100)
    chosen, targets = TokenClasses().decisions(logits, labels)
    np.testing.assert_array_equal(
        chosen, np.concatenate([row[mask] for row, mask in zip(logits, labels == 2, strict=True)])
    )
    np.testing.assert_array_equal(targets, [2] * 10)
    for kind in (Classes, Choices):
        chosen, targets = kind().decisions(logits[:, 0], np.array([1, -100, 3]))
        np.testing.assert_array_equal(chosen, logits[[0, 2], 0])
        np.testing.assert_array_equal(targets, [1, 3])


def test_decisions_of_labels_are_yes_or_no():
    logits, labels = draw((3, 4)).double().numpy(), np.arange(12).reshape(3, 4) % 2.0
    chosen, targets = Labels().decisions(logits, labels)
    assert chosen.shape == (12, 2)
    np.testing.assert_array_equal(targets, labels.flatten())
    assert targets.dtype.kind == "i"
    for z, pair in zip(logits.flat, chosen, strict=True):
        np.testing.assert_allclose(softmax(pair)[1], 1 / (1 + np.exp(-z)))


def test_decisions_of_spans_are_a_start_and_an_end():
    logits, labels = draw((3, 5, 2)).numpy(), np.array([[0, 4], [1, 1], [2, 3]])
    chosen, targets = Spans().decisions(logits, labels)
    assert chosen.shape == (6, 5)
    for row in range(3):
        for end in (0, 1):
            np.testing.assert_array_equal(chosen[2 * row + end], logits[row, :, end])
            assert targets[2 * row + end] == labels[row, end]


MODELS = [
    (BertForSequenceClassification, {}, Classes),
    (BertForSequenceClassification, {"num_labels": 1, "id2label": {0: "score"}, "label2id": None}, Regression),
    (BertForSequenceClassification, {"problem_type": "regression"}, Regression),
    (BertForSequenceClassification, {"problem_type": "multi_label_classification"}, Labels),
    (BertForTokenClassification, {}, TokenClasses),
    (BertForTokenClassification, {"num_labels": 1, "id2label": {0: "score"}, "label2id": None}, Regression),
    (BertForQuestionAnswering, {"num_labels": 2, "id2label": {0: "start", 1: "end"}, "label2id": None}, Spans),
    (BertForMultipleChoice, {}, Choices),
    (BertForMaskedLM, {}, MaskedTokens),
    (BertForNextSentencePrediction, {}, Classes),
    (BertModel, {}, Classes),
]


@pytest.mark.parametrize(("model_class", "changes", "kind"), MODELS)
def test_the_kind_of_a_model_and_its_logits(model_class, changes, kind):
    model = build(model_class, bert_config(1, 16, **changes)).eval()
    head = prediction_head_of(model)
    assert type(head) is kind
    shape = (2, 3, 4) if kind is Choices else (2, 4)
    with torch.no_grad():
        outputs = model(input_ids=torch.ones(shape, dtype=torch.long))
    logits = head.logits(outputs)
    if model_class is BertModel:
        assert logits is None
    elif kind is Spans:
        assert torch.equal(logits[..., 0], outputs.start_logits)
        assert torch.equal(logits[..., 1], outputs.end_logits)
    else:
        assert logits is outputs.logits
    labels = torch.full((2, 4), -100).index_fill(1, torch.tensor([1]), 5)
    mask, real = head.mask(labels, torch.ones(2, 4)), torch.ones(2, 4)
    if kind is Choices:
        assert mask is None
    else:
        assert torch.equal(mask, labels == 5 if kind is MaskedTokens else real)


def test_a_kind_that_a_user_defines_is_found_without_registration():
    class Ordinal(Classes):
        """Classes in an order."""

        name = "ordinal classes"

        @classmethod
        def matches(cls, model):
            return model.config.problem_type is None and model.config.to_dict().get("ordinal", False)

    with forgotten({"kind": Ordinal}):
        model = build(BertForSequenceClassification, bert_config(1, 16, ordinal=True))
        assert type(prediction_head_of(model)) is Ordinal
        assert type(prediction_head_of(build(BertForSequenceClassification, bert_config(1, 16)))) is Classes
        del Ordinal
    assert type(prediction_head_of(model)) is Classes


def test_the_last_of_several_kinds_that_match_is_taken():
    class First(PredictionHead):
        @classmethod
        def matches(cls, model):
            return True

    class Second(PredictionHead):
        @classmethod
        def matches(cls, model):
            return True

    with forgotten({"first": First, "second": Second}):
        assert type(prediction_head_of(build(BertForMaskedLM, bert_config(1, 16)))) is Second
        del First, Second
