"""What the figures hold, against eager attention and the definition of CKA."""

import numpy as np
import pytest
import torch
from conftest import pad, rows, word_tokenizer

from hf_tinybert.evaluation.plots import (
    attention_probabilities,
    linear_cka,
    plot_attention,
    plot_latency,
    plot_losses,
    plot_similarity,
    save_png,
)
from hf_tinybert.evaluation.report import StudentReport

GENERATOR = torch.Generator().manual_seed(0)
HISTORY = [
    {"loss": 3.0, "attention_loss": 2.0, "hidden_loss": 1.0, "step": 10},
    {"eval_loss": 0.7, "step": 10},
    {"loss": 1.5, "attention_loss": 1.0, "hidden_loss": 0.5, "step": 20},
    {"train_loss": 2.0, "step": 20},
]


def draw(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def images(figure):
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def one_row(length=7, padding=2):
    inputs = pad([{"input_ids": list(range(1, length + 1)), "attention_mask": [1] * length}], length + padding)
    return inputs, [f"t{i}" for i in range(length + padding)]


def naive_cka(x, y):
    n = len(x)
    centre = torch.eye(n, dtype=x.dtype) - torch.ones(n, n, dtype=x.dtype) / n

    def hsic(a, b):
        return torch.trace(a @ a.T @ centre @ b @ b.T @ centre) / (n - 1) ** 2

    return (hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()).item()


def test_cka_is_normalised_hsic():
    x, y = draw(30, 5) + 3, draw(30, 8)
    assert linear_cka(x, y) == pytest.approx(naive_cka(x, y), rel=1e-10)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x), rel=1e-12)
    assert 0 < linear_cka(x, y) < 1


def test_cka_does_not_see_rotation_scale_and_shift():
    x, y = draw(30, 5), draw(30, 8)
    rotation = torch.linalg.qr(draw(5, 5)).Q
    assert linear_cka(-3 * x @ rotation + 2, y) == pytest.approx(linear_cka(x, y), rel=1e-10)
    assert linear_cka(-3 * x @ rotation + 2, x) == pytest.approx(1, rel=1e-10)
    assert linear_cka(x @ draw(5, 5), y) != pytest.approx(linear_cka(x, y), rel=1e-3)


def test_attention_probabilities_are_those_of_eager_attention(teacher):
    inputs, _ = one_row()
    found = attention_probabilities(teacher, inputs, [2, 4])
    teacher.set_attn_implementation("eager")
    with torch.no_grad():
        expected = teacher(**inputs, output_attentions=True).attentions
    assert sorted(found) == [2, 4]
    for layer, probabilities in found.items():
        np.testing.assert_allclose(probabilities, expected[layer - 1][0].mean(0).numpy(), rtol=1e-4, atol=1e-6)


def test_attention_figure(teacher, student):
    inputs, tokens = one_row()
    student.train()
    figure = plot_attention(teacher, student, inputs, tokens)
    theirs, ours = attention_probabilities(teacher, inputs, [2, 4]), attention_probabilities(student, inputs, [1, 2])
    panels = [image for image in images(figure) if image.shape == (9, 9)]
    for image, expected in zip(panels, (theirs[2], ours[1], theirs[4], ours[2]), strict=True):
        np.testing.assert_allclose(image, expected)
        np.testing.assert_allclose(image.sum(-1), 1, rtol=1e-5)
        assert (image[:, 7:] == 0).all()
    titles = [axes.get_title() for axes in figure.axes[:4]]
    assert titles == ["teacher layer 2", "student layer 1", "teacher layer 4", "student layer 2"]
    assert [label.get_text() for label in figure.axes[3].get_xticklabels()] == tokens
    assert student.training
    assert student.config._attn_implementation == "sdpa"


def test_attention_of_several_rows_is_refused(teacher, student):
    with pytest.raises(ValueError, match=r"one row.*3 tokens"):
        plot_attention(teacher, student, pad(list(rows(2))), ["a", "b", "c"])


def test_similarity_figure(teacher, student):
    batch = pad(list(rows(16)))
    (values,) = (image for image in images(plot_similarity(teacher, student, batch)) if image.shape == (3, 5))
    mask = batch["attention_mask"].bool()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "output_hidden_states": True}
    with torch.no_grad():
        theirs, ours = teacher(**inputs).hidden_states, student.eval()(**inputs).hidden_states
    assert values[1, 3] == pytest.approx(naive_cka(ours[1][mask].double(), theirs[3][mask].double()), rel=1e-5)
    (longer,) = (
        image
        for image in images(plot_similarity(teacher, student, pad(list(rows(16)), 30)))
        if image.ndim == 2 and image.shape == (3, 5)
    )
    np.testing.assert_allclose(longer, values, rtol=1e-4)
    (own, *_) = images(plot_similarity(teacher, teacher, batch))
    np.testing.assert_allclose(np.diag(own), 1, rtol=1e-6)


def test_losses_figure():
    prediction = [{"loss": 0.5, "prediction_loss": 0.5, "step": 5}, {"eval_loss": 0.4, "step": 5}]
    first, second = plot_losses([("intermediate", HISTORY), ("prediction", prediction)]).axes
    lines = {line.get_label(): np.asarray(line.get_data()).tolist() for line in first.lines}
    assert lines == {
        "attention": [[10, 20], [2, 1]],
        "hidden": [[10, 20], [1, 0.5]],
        "total": [[10, 20], [3, 1.5]],
        "evaluation": [[10], [0.7]],
    }
    assert [line.get_label() for line in second.lines] == ["prediction", "evaluation"]
    colour = {line.get_label(): line.get_color() for line in (*first.lines, *second.lines)}
    assert len(set(colour.values())) == 5
    assert (first.get_yscale(), first.get_xlabel(), second.get_title()) == ("log", "step", "prediction")


def test_losses_of_a_run_without_a_teacher_are_its_total():
    (axes,) = plot_losses([("fine-tuning", [{"loss": 0.5, "step": 5}])]).axes
    assert [line.get_label() for line in axes.lines] == ["total"]


def test_a_stage_without_losses_is_refused():
    with pytest.raises(ValueError, match="'prediction' logged no loss"):
        plot_losses([("prediction", [{"train_loss": 2.0, "step": 20}])])


def test_latency_figure(teacher, student, tmp_path):
    def compute(prediction):
        return {"accuracy": (prediction.predictions.argmax(-1) == prediction.label_ids).mean(), "other": 0.25}

    options = {"engines": ("torch",), "calls": 3, "resamples": 5}
    report = StudentReport.measure(teacher, student, rows(8), word_tokenizer(tmp_path), compute, **options)
    (axes,) = plot_latency(report).axes
    ordered = sorted(report.measurements, key=lambda found: found.latency_ms["p50"])
    for disc, label, found in zip(axes.collections, axes.texts, ordered, strict=True):
        assert disc.get_offsets().tolist() == [[found.latency_ms["p50"], found.metrics["accuracy"][0]]]
        assert found.model in label.get_text()
        assert found.engine_name in label.get_text()
    areas = [disc.get_sizes()[0] for disc in axes.collections]
    assert areas[0] / areas[1] == pytest.approx(ordered[0].megabytes / ordered[1].megabytes)
    assert axes.get_xscale() == "log"
    assert "ms" in axes.get_xlabel()
    assert plot_latency(report, "other").axes[0].collections[0].get_offsets()[0, 1] == 0.25


def test_png(tmp_path):
    from PIL import Image

    save_png(plot_losses([("intermediate", HISTORY)]), tmp_path / "losses.png")
    with Image.open(tmp_path / "losses.png") as image:
        assert image.format == "PNG"
        assert image.width == 700
        assert len(image.convert("RGB").getcolors(1000)) > 10
