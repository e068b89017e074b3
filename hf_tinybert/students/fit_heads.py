"""The prediction heads of a student, fitted to the teacher's layer by layer."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from ..least_squares import (
    fit_output_projection,
    linear_moments,
    linear_weight,
    project_inputs,
    set_linear,
    validated_ridge,
)
from ..models.architectures import architecture_of
from ..models.forward import replaced_modules
from ..models.prediction_heads import Choices, prediction_head_of
from .calibration import CalibrationBatch, module_input
from .fit_sublayer import ROUNDS
from .states import CalibrationStates, TokenStore, padded

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeadFit:
    """Fits the linear layers of the student's prediction heads one by one.

    Args:
        student: The student, in eval mode, with fitted embeddings and encoder.
        teacher: The teacher, in eval mode.
        basis: P, (D, D').
        table_map: The linear map from the teacher's embedding tables to the student's; None if they are the same.
        states: The last hidden states of both models on the calibration data.
    """

    student: PreTrainedModel
    teacher: PreTrainedModel
    basis: Tensor
    table_map: nn.Linear | None
    states: CalibrationStates

    def is_language_model_layer(self, name: str) -> bool:
        """Whether a linear layer is the hidden layer of a language model head whose table has another basis."""
        output, layer = self.teacher.get_output_embeddings(), self.teacher.get_submodule(name)
        if self.table_map is None or output is None or layer.out_features != output.in_features:
            return False
        return layer not in set(self.teacher.base_model.modules())

    def fit_hidden_layer(self, name: str, output_layers: list[str]) -> Tensor:
        """Fit a layer D → D' to the most important units of the teacher's D → D.

        Args:
            name: The name of the layer.
            output_layers: The names of the layers that receive the units.

        Returns:
            The units, (D',).
        """
        count = self.student.get_submodule(name).out_features
        units = self._important_units(name, output_layers, count)
        prior = linear_weight(self.teacher.get_submodule(name))[:, units]
        self._fit_layer(name, project_inputs(prior, self.basis), units)
        return units

    def fit_output_layer(self, name: str, units: Tensor | None) -> None:
        """Fit a layer whose outputs are the teacher's.

        Args:
            name: The name of the layer.
            units: The units of the hidden layer that it receives; None if it receives hidden states.
        """
        prior = linear_weight(self.teacher.get_submodule(name))
        prior = project_inputs(prior, self.basis) if units is None else torch.cat([prior[:-1][units], prior[-1:]])
        self._fit_layer(name, prior, slice(None))

    def fit_language_model_layer(self, name: str, norm: str) -> None:
        """Fit LayerNorm(activation(layer(h))) so that its products with the mapped table are the teacher's logits.

        Args:
            name: The name of the hidden layer.
            norm: The name of the LayerNorm after it.
        """
        decode = self._decode_map()
        layer = self.student.get_submodule(name)
        set_linear(layer, project_inputs(linear_weight(self.teacher.get_submodule(name)), self.basis) @ decode)

        def tokens() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
            for (x, _, held_out), (_, h, _) in zip(self._layer_inputs(name), self._layer_inputs(norm), strict=True):
                target = self.teacher.get_submodule(norm)(h) @ decode.float()
                yield x, torch.zeros_like(target), target, held_out

        fit_output_projection(layer, self.student.get_submodule(norm), tokens, ROUNDS)
        # No choice of units fits a table in another basis, so the layer starts linear: far above zero GELU is the
        # identity, and the LayerNorm removes the constant.
        lowest = min(layer(x).min() for x, _, _ in self._layer_inputs(name))
        layer.bias.add_(4.0 - lowest)

    def _decode_map(self) -> Tensor:
        """The map t → t' (E, E') for which the logits Wt' over the student's table are nearest to the teacher's."""
        old, new = self.teacher.get_output_embeddings(), self.student.get_output_embeddings()
        if new.weight is not self.student.get_input_embeddings().weight:
            new.weight.copy_(old.weight.float() @ self.table_map.weight.T)
        gram = (new.weight.T @ new.weight).double()
        gram.diagonal().add_(1e-3 * gram.diagonal().mean())
        return torch.linalg.solve(gram, (new.weight.T @ old.weight.float()).double()).T

    def _fit_layer(self, name: str, prior: Tensor, outputs: Tensor | slice) -> None:
        """Ridge regression from the student's inputs of a layer to some outputs of the teacher's layer."""
        layer = self.teacher.get_submodule(name)
        fit, held_out = linear_moments((x, layer(h)[:, outputs], held) for x, h, held in self._layer_inputs(name))
        set_linear(self.student.get_submodule(name), validated_ridge(fit, held_out, prior))

    def _layer_inputs(self, name: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The inputs of a layer in student and teacher and the held-out mask, by tokens or by rows."""
        student_inputs = _module_inputs(self.student, name, self.states.student, self.states.batches)
        teacher_inputs = _module_inputs(self.teacher, name, self.states.teacher, self.states.batches)
        for batch, (x, of_tokens), (h, _) in zip(self.states.batches, student_inputs, teacher_inputs, strict=True):
            yield x, h, batch.held_out_tokens if of_tokens else batch.held_out_rows

    def _important_units(self, name: str, output_layers: list[str], count: int) -> Tensor:
        """The units with the largest variance times the squared weights of the layers that receive them."""
        importance = 0.0
        for output_name in output_layers or [name]:
            layer, sums = self.teacher.get_submodule(output_name), 0.0
            for x, _ in _module_inputs(self.teacher, output_name, self.states.teacher, self.states.batches):
                units = (x if output_layers else layer(x)).double()
                sums = sums + torch.stack([torch.ones_like(units), units, units.square()]).sum(1)
            mean, mean_square = sums[1:] / sums[0]
            weight = layer.weight.square().sum(0) if output_layers else 1.0
            importance = importance + (mean_square - mean.square()) * weight
        return importance.topk(count).indices.sort().values


def fit_heads(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    basis: Tensor,
    table_map: nn.Linear | None,
    states: CalibrationStates,
) -> None:
    """Fit the prediction heads: the linear layers outside embeddings and encoder, in their order.

    A hidden layer D → D (the pooler, for example) receives hidden states and is reduced to its most important units.
    An output layer receives those units, or hidden states if there is no hidden layer. Other parameters are copied if
    their shape is the teacher's. The rest keep their random initialisation, which is logged as a warning.

    Args:
        student: The student, in eval mode, with fitted embeddings and encoder; it is changed.
        teacher: The teacher, in eval mode.
        basis: P, (D, D').
        table_map: The linear map from the teacher's embedding tables to the student's; None if they are the same.
        states: The last hidden states of both models on the calibration data.
    """
    head_fit = HeadFit(student, teacher, basis, table_map, states)
    modules, width = _head_modules(teacher), len(basis)
    linears = {
        name: module
        for name, module in modules.items()
        if isinstance(module, nn.Linear) and module.in_features == width and module.bias is not None
    }
    output_layers = [name for name, module in linears.items() if module.out_features != width]
    fitted = {parameter for name in linears for parameter in student.get_submodule(name).parameters()}
    units = None
    for name, layer in linears.items():
        if head_fit.is_language_model_layer(name):
            norm = next(key for key, module in modules.items() if isinstance(module, nn.LayerNorm))
            head_fit.fit_language_model_layer(name, norm)
            fitted |= {*student.get_submodule(norm).parameters(), student.get_output_embeddings().weight}
        elif layer.out_features == width:
            units = head_fit.fit_hidden_layer(name, output_layers)
        else:
            head_fit.fit_output_layer(name, units)
    _copy_other_parameters(student, teacher, fitted)


def _body(model: PreTrainedModel) -> set[nn.Module]:
    """The modules of embeddings and encoder, with the norm after the last layer."""
    architecture = architecture_of(model.config)
    final_norm = architecture.final_norm(model)
    parts = (
        architecture.embeddings(model),
        architecture.encoder(model),
        architecture.embedding_projection(model),
        final_norm and getattr(*final_norm),
    )
    return {module for part in parts if part is not None for module in part.modules()}


def _head_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules outside embeddings, encoder and the projection onto the vocabulary, by their names."""
    outside = _body(model) | {model.get_output_embeddings()}
    return {name: module for name, module in model.named_modules() if module not in outside}


def _copy_other_parameters(student: PreTrainedModel, teacher: PreTrainedModel, fitted: set[nn.Parameter]) -> None:
    """Copy the parameters of the prediction heads that were not fitted, or log that they start at random."""
    body = {parameter for module in _body(student) for parameter in module.parameters()}
    for name, parameter in student.named_parameters():
        if parameter in fitted or parameter in body:
            continue
        source = teacher.get_parameter(name)
        if source.shape == parameter.shape:
            parameter.copy_(source)
        else:
            logger.warning("%s of the student does not follow from the teacher: it starts at random.", name)


class _LastStates(nn.Module):
    """Stands for an encoder whose last hidden states are known."""

    def __init__(self, states: Tensor):
        super().__init__()
        self._outputs = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states)

    def forward(self, *args, **kwargs) -> BaseModelOutputWithPastAndCrossAttentions:
        return self._outputs


@contextmanager
def _with_last_states(model: PreTrainedModel, states: Tensor) -> Iterator[None]:
    """The encoder of a model does not run: its last hidden states, after any final norm, are (B, S, D) `states`."""
    base, architecture = model.base_model, architecture_of(model.config)
    encoder, final_norm = architecture.encoder(model), architecture.final_norm(model)
    places = [(base, next(name for name, child in base.named_children() if child is encoder), _LastStates(states))]
    if final_norm is not None and final_norm[0] is not encoder:
        places.append((*final_norm, nn.Identity()))
    with replaced_modules(places):
        yield


def _module_inputs(
    model: PreTrainedModel, name: str, last_states: TokenStore, batches: list[CalibrationBatch]
) -> Iterator[tuple[Tensor, bool]]:
    """The inputs of a module of a prediction head for each batch, and whether there is one for each token.

    No logits over the vocabulary are computed.
    """
    module, vocabulary = model.get_submodule(name), model.get_output_embeddings()
    for i, batch in enumerate(batches):
        inputs = batch.inputs
        if isinstance(prediction_head_of(model), Choices):  # every row is the only choice of an example
            inputs = {key: tensor[:, None] for key, tensor in inputs.items()}
        with (
            _with_last_states(model, padded(last_states[i], batch.mask)),
            nullcontext() if vocabulary is None else vocabulary.register_forward_pre_hook(_no_tokens),
        ):
            x = module_input(model, module, inputs)
        yield (x[batch.mask], True) if x.dim() == 3 else (x, False)


def _no_tokens(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0][..., :0, :], *args[1:])
