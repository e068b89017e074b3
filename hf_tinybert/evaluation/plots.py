"""Figures of a distilled student, 700 pixels wide at 100 dpi. Each is a new matplotlib Figure, without pyplot."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..activations import QueryKey
from ..layer_mapping import map_layers
from ..models.capture import ActivationCapture
from ..models.forward import evaluation_mode, forward_columns
from .measurement import Measured

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

WIDTH = 7.0  # inches
# the palette of Okabe and Ito, which people with any colour vision can tell apart
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LABELS = {"loss": "total", "eval_loss": "evaluation"}
MODEL_COLOURS = {"teacher": COLOURS[1], "student": COLOURS[2]}


def plot_latency(report: Measured, metric: str | None = None) -> "Figure":
    """A metric with its 95 % interval against latency, a disc for each model and engine.

    The area of a disc is proportional to the size in megabytes.

    Args:
        report: A `StudentReport`.
        metric: The name of the metric; default the first one.
    """
    figure = _figure(4.2)
    axes = figure.subplots()
    metric = metric or next(iter(report.measurements[0].metrics))
    largest = max(m.megabytes for m in report.measurements)
    for index, m in enumerate(sorted(report.measurements, key=lambda m: m.latency_ms["p50"])):
        x, (y, low, high), colour = m.latency_ms["p50"], m.metrics[metric], MODEL_COLOURS[m.model]
        axes.plot([x, x], [low, high], color=colour, linewidth=1, alpha=0.5)
        axes.scatter(x, y, 900 * m.megabytes / largest, color=colour, alpha=0.6)
        label = f"{m.model}\n{m.engine_name}\n{m.megabytes:.0f} MB"
        end, offset, side = (low, -4, "top") if index % 2 else (high, 4, "bottom")  # neighbours do not overlap
        axes.annotate(label, (x, end), (0, offset), textcoords="offset points", ha="center", va=side, fontsize=8)
    axes.set_xscale("log")
    _plain_numbers(axes.xaxis)
    axes.margins(0.12, 0.2)
    axes.set(
        title="Score against latency", xlabel="median latency of one row (ms, log)", ylabel=f"{metric} (95 % interval)"
    )
    axes.grid(alpha=0.3)
    return figure


def plot_reliability(report: Measured) -> "Figure":
    """Accuracy against confidence of teacher and student in the first engine, before and after their temperatures.

    On the diagonal probabilities are honest; below it the model is too confident. The area of a disc is proportional
    to its share of the decisions.

    Args:
        report: A `StudentReport` of a head that decides.

    Raises:
        ValueError: If it has no calibration, as of scores.
    """
    engine = report.measurements[0].engine
    measured = [m for m in report.measurements if m.calibration and m.engine == engine]
    if not measured:
        raise ValueError("The report has no calibration: its head gives scores, or its logits were not held.")
    figure = _figure(3.8)
    for axes, m in zip(figure.subplots(1, len(measured), sharey=True, squeeze=False)[0], measured, strict=True):
        axes.plot([0, 1], [0, 1], color=COLOURS[0], linewidth=1, alpha=0.5)
        calibration, colour = m.calibration, MODEL_COLOURS[m.model]
        after = f"temperature {calibration.temperature:.2f}: error {calibration.error_after:.3f}"
        for bins, label, style in (
            (calibration.bins, f"as it is: error {calibration.error:.3f}", {"color": colour, "alpha": 0.6}),
            (calibration.bins_after, after, {"facecolor": "none", "edgecolor": COLOURS[0]}),
        ):
            shares, confidences, accuracies = np.transpose(bins)
            axes.scatter(confidences, accuracies, 10 + 300 * shares, label=label, **style)
        axes.set(title=m.model, xlabel="confidence", xlim=(0, 1.02), ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower right", markerscale=0.5)
    figure.axes[0].set_ylabel("accuracy")
    return figure


def plot_losses(stages: Sequence[tuple[str, Sequence[Mapping[str, float]]]]) -> "Figure":
    """Every loss over the steps on a logarithmic scale, one panel for each stage of training.

    The total is left out if it has one component only.

    Args:
        stages: (name, `log_history` of its trainer state) of each stage.

    Raises:
        ValueError: If a stage logged no loss.
    """
    figure = _figure(3.6)
    figure.suptitle("Losses")
    panels, colours = figure.subplots(1, len(stages), squeeze=False)[0], {}
    for axes, (stage, history) in zip(panels, stages, strict=True):
        names = _losses(history)
        if not names:
            raise ValueError(f"Stage '{stage}' logged no loss: lower logging_steps.")
        for name in names:
            steps, values = zip(*((log["step"], log[name]) for log in history if name in log), strict=True)
            colour = colours.setdefault(name, COLOURS[len(colours) % len(COLOURS)])
            label = _LABELS.get(name, name.removesuffix("_loss"))
            axes.plot(steps, values, color=colour, marker="o", markersize=3, label=label)
        axes.set_yscale("log")
        _plain_numbers(axes.yaxis)
        axes.set_xlim(left=0)
        axes.set(title=stage, xlabel="step", ylabel="loss (log)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def _losses(history: Sequence[Mapping[str, float]]) -> list[str]:
    names = dict.fromkeys(key for log in history for key in log if key in _LABELS or key.endswith("_loss"))
    components = [name for name in names if name not in {*_LABELS, "train_loss"}]
    return components + [name for name in _LABELS if name in names and (name, len(components)) != ("loss", 1)]


def plot_attention(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    tokens: Sequence[str],
    layer_mapping: str | Sequence[Any] = "uniform",
) -> "Figure":
    """Attention probabilities, mean over attention heads, of each pair of mapped layers: teacher left, student right.

    The encoders run alone, so that models with any prediction head, or none, can be drawn. The probabilities are over
    all keys also in models with windows of local attention (ModernBERT).

    Args:
        teacher: The teacher.
        student: The student.
        inputs: One sequence, (1, S), or (1, 1, S) as in multiple choice; what a model does not take is ignored.
        tokens: The S tokens as text.
        layer_mapping: As in `map_layers`.

    Raises:
        ValueError: If `inputs` is not one sequence of as many tokens.
    """
    shape = tuple(inputs["input_ids"].shape)
    if inputs["input_ids"].numel() != len(tokens) or shape[-1] != len(tokens):
        raise ValueError(
            f"plot_attention draws one row with a token for each id; there are {len(tokens)} tokens, and input_ids is "
            f"{shape}."
        )
    pairs = map_layers(layer_mapping, student.config.num_hidden_layers, teacher.config.num_hidden_layers)
    figure = _figure(0.8 + 2.9 * len(pairs))
    from matplotlib.colors import PowerNorm  # a square root: most probabilities are small beside the first token's

    student_maps = attention_probabilities(student, inputs, [m for m, _ in pairs])
    teacher_maps = attention_probabilities(teacher, inputs, [g for _, g in pairs])
    panels = figure.subplots(len(pairs), 2, sharex=True, sharey=True, squeeze=False)
    for (left, right), (m, g) in zip(panels, pairs, strict=True):
        largest = max(student_maps[m].max(), teacher_maps[g].max())
        titles = (left, teacher_maps[g], f"teacher layer {g}"), (right, student_maps[m], f"student layer {m}")
        for axes, values, title in titles:
            image = axes.imshow(values, norm=PowerNorm(0.5, vmin=0, vmax=largest), cmap="viridis")
            axes.set_title(title, fontsize=10)
            axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=8)
            axes.set_yticks(range(len(tokens)), tokens, fontsize=8)
        left.set_ylabel("query")
        figure.colorbar(image, ax=[left, right], shrink=0.8, label="probability")
    for axes in panels[-1]:
        axes.set_xlabel("key")
    figure.suptitle("Attention probabilities, mean over heads; colours by square root")
    return figure


@torch.no_grad()
def attention_probabilities(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], layers: Sequence[int]
) -> dict[int, np.ndarray]:
    """Attention probabilities of the first sequence, mean over attention heads; those of MPNet without its bias.

    Args:
        model: A model with any prediction head, or none.
        inputs: Sequences, (B, S) or (B, choices, S).
        layers: Layers, counted from 1.

    Returns:
        {layer: (S, S)}, queries first; each row sums to 1.
    """
    encoder = model.base_model
    capture = ActivationCapture(encoder, attention_layers=layers)
    inputs = _encoder_inputs(encoder, inputs)
    with evaluation_mode(encoder), capture.enabled(), capture.recording() as scores:
        outputs = encoder(**inputs, **capture.forward_arguments)
        activations = capture.collect(outputs, inputs.get("attention_mask"), scores)
    return {layer: _probabilities(activations.attentions[layer - 1], activations.attention_mask) for layer in layers}


def _probabilities(attention: QueryKey | Tensor, mask: Tensor | None) -> np.ndarray:
    scores = (attention.scores() if isinstance(attention, QueryKey) else attention.float())[0]
    if mask is not None:
        scores = scores.masked_fill(~mask[0].bool(), -torch.inf)
    return scores.softmax(-1).mean(0).cpu().numpy()


def plot_similarity(teacher: PreTrainedModel, student: PreTrainedModel, inputs: Mapping[str, Tensor]) -> "Figure":
    """Linear CKA of every student layer and every teacher layer, 0 being the embedding output, on real tokens.

    The encoders run alone, so that models with any prediction head, or none, can be drawn.

    Args:
        teacher: The teacher.
        student: The student.
        inputs: Some hundred sequences, (B, S) or (B, choices, S), with `attention_mask`. With fewer tokens than
            dimensions all layers look alike.
    """
    teacher_states, student_states = _hidden_states(teacher, inputs), _hidden_states(student, inputs)
    values = np.array([[linear_cka(x, y) for y in teacher_states] for x in student_states])
    figure = _figure(1.5 + 0.55 * len(student_states))
    axes = figure.subplots()
    image = axes.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        colour = "black" if value > 0.6 else "white"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(teacher_states)))
    axes.set_yticks(range(len(student_states)))
    axes.set(title="Similarity of layers", xlabel="teacher layer (0: embeddings)", ylabel="student layer")
    figure.colorbar(image, label="linear CKA")
    return figure


def linear_cka(x: Tensor, y: Tensor) -> float:
    """‖YᵀX‖² / (‖XᵀX‖·‖YᵀY‖) of centred columns in float64, with Frobenius norms.

    Kornblith et al. (2019), arXiv 1905.00414, equation 4 with linear kernels.

    Args:
        x: (n, p).
        y: (n, q).

    Returns:
        0 to 1; 1 if x and y differ by a rotation and a scale.
    """
    x, y = (z.double() - z.double().mean(0) for z in (x, y))
    return ((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())).item()


@torch.no_grad()
def _hidden_states(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """The states of real tokens, (tokens, D), of each layer, the embedding output first."""
    encoder = model.base_model
    inputs = _encoder_inputs(encoder, inputs)
    with evaluation_mode(encoder):
        states = encoder(**inputs, output_hidden_states=True).hidden_states
    return [state[inputs["attention_mask"].bool()] for state in states]


def _encoder_inputs(encoder: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs that the encoder takes, all choices of all rows below one another."""
    columns = forward_columns(encoder)
    return {
        name: values.reshape(-1, values.shape[-1]).to(encoder.device)
        for name, values in inputs.items()
        if name in columns
    }


def save_png(figure: "Figure", path: str | PathLike) -> None:
    """Write a figure as PNG, at 100 dpi and with 256 colours, which take a third of the bytes of all colours.

    Args:
        figure: The figure.
        path: The file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(256).save(path, optimize=True)


def _figure(height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'hf_tinybert[report]'.") from error
    return Figure(figsize=(WIDTH, height), layout="constrained")


def _plain_numbers(axis: "Axis") -> None:
    """Write 0.3 rather than 3 × 10⁻¹ at a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
