"""What the figures hold, against eager attention and the definition of CKA."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import bert_config, build, pad, rows
from head_kinds import KINDS
from plain_report import plain_report

from hf_tinybert.evaluation.plots import (
    attention_probabilities,
    linear_cka,
    plot_attention,
    plot_latency,
    plot_losses,
    plot_similarity,
    save_png,
)

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
    probabilities = attention_probabilities(teacher, inputs, [2, 4])
    teacher.set_attn_implementation("eager")
    with torch.no_grad():
        expected = teacher(**inputs, output_attentions=True).attentions
    assert sorted(probabilities) == [2, 4]
    for layer, values in probabilities.items():
        np.testing.assert_allclose(values, expected[layer - 1][0].mean(0).numpy(), rtol=1e-4, atol=1e-6)


def test_attention_figure(teacher, student):
    inputs, tokens = one_row()
    student.train()
    figure = plot_attention(teacher, student, inputs, tokens)
    teacher_maps = attention_probabilities(teacher, inputs, [2, 4])
    student_maps = attention_probabilities(student, inputs, [1, 2])
    panels = [image for image in images(figure) if image.shape == (9, 9)]
    pairs = (teacher_maps[2], student_maps[1], teacher_maps[4], student_maps[2])
    for image, expected in zip(panels, pairs, strict=True):
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
        teacher_states, student_states = teacher(**inputs).hidden_states, student.eval()(**inputs).hidden_states
    expected = naive_cka(student_states[1][mask].double(), teacher_states[3][mask].double())
    assert values[1, 3] == pytest.approx(expected, rel=1e-5)
    (longer,) = (
        image
        for image in images(plot_similarity(teacher, student, pad(list(rows(16)), 30)))
        if image.ndim == 2 and image.shape == (3, 5)
    )
    np.testing.assert_allclose(longer, values, rtol=1e-4)
    (with_itself, *_) = images(plot_similarity(teacher, teacher, batch))
    np.testing.assert_allclose(np.diag(with_itself), 1, rtol=1e-6)


@pytest.mark.parametrize("name", ["spans", "choices", "masked tokens"])
def test_the_figures_of_any_head_are_those_of_its_encoder(name):
    """With all that the collator makes: labels, positions, several choices."""
    kind = KINDS[name]
    teacher, student = (build(kind.model_class, bert_config(n, 16, **kind.config), n).eval() for n in (4, 2))
    batch = pad(list(rows(12)), 13)
    columns = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    labelled = columns | {"labels": batch["labels"], "start_positions": batch["labels"], "row": batch["labels"]}
    if name == "choices":
        labelled |= {column: values.reshape(4, 3, -1) for column, values in columns.items()}
    (values, *_), (expected, *_) = (
        images(plot_similarity(*models, inputs))
        for models, inputs in (((teacher, student), labelled), ((teacher.base_model, student.base_model), columns))
    )
    np.testing.assert_array_equal(values, expected)
    inputs, tokens = one_row()
    expected = attention_probabilities(teacher.base_model, inputs, [2])[2]
    if name == "choices":
        inputs = {column: values[:, None] for column, values in inputs.items()}
    (first, *_) = images(plot_attention(teacher, student, inputs, tokens))
    np.testing.assert_array_equal(first, expected)


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


def test_latency_figure():
    report = plain_report()
    (axes,) = plot_latency(report).axes
    ordered = sorted(report.measurements, key=lambda measurement: measurement.latency_ms["p50"])
    for disc, label, measurement in zip(axes.collections, axes.texts, ordered, strict=True):
        assert disc.get_offsets().tolist() == [[measurement.latency_ms["p50"], measurement.metrics["accuracy"][0]]]
        assert measurement.model in label.get_text()
        assert measurement.engine_name in label.get_text()
    areas = [disc.get_sizes()[0] for disc in axes.collections]
    assert areas[0] / areas[1] == pytest.approx(ordered[0].megabytes / ordered[1].megabytes)
    assert axes.get_xscale() == "log"
    assert "ms" in axes.get_xlabel()
    teacher = report.measurements[0]
    report.measurements = [replace(teacher, metrics=teacher.metrics | {"other": [0.25, 0.2, 0.3]})]
    assert plot_latency(report, "other").axes[0].collections[0].get_offsets()[0, 1] == 0.25


def test_png(tmp_path):
    from PIL import Image

    save_png(plot_losses([("intermediate", HISTORY)]), tmp_path / "losses.png")
    with Image.open(tmp_path / "losses.png") as image:
        assert image.format == "PNG"
        assert image.width == 700
        assert len(image.convert("RGB").getcolors(1000)) > 10
