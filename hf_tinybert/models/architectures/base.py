"""What the package has to know of an architecture: where its parts are, and what its configuration calls them."""

from collections.abc import Mapping
from typing import ClassVar

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..families import newest_match, subclasses
from .blocks import Block


class Architecture:
    """A family of encoders. This class knows what all of them share; a subclass describes one family.

    Attributes:
        model_types: The `config.model_type` of its models.
        size_names: The configuration's names of the sizes that `create_student` takes, if they differ.
        fits_students: Whether students can be initialised from a teacher of this family (`blocks`).
        computes_tokens_separately: Whether its layers compute each token by itself, attention aside, so that they can
            run without padding. Rotary positions prevent it.
        scores_are_products: Whether attention losses compare QKᵀ·scaling of its `blocks`, in a family that computes
            attention without transformers' attention interface.
        drops_layers: Whether a model runs with fewer layers once its list of layers is shortened.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    size_names: ClassVar[Mapping[str, str]] = {}
    fits_students: ClassVar[bool] = False
    computes_tokens_separately: ClassVar[bool] = False
    scores_are_products: ClassVar[bool] = False
    drops_layers: ClassVar[bool] = True

    def has_size(self, config: PretrainedConfig, name: str) -> bool:
        """Whether the configuration has a size, by the name that `create_student` gives it."""
        return hasattr(config, self.size_names.get(name, name))

    def size(self, config: PretrainedConfig, name: str) -> int:
        """A size by the name that `create_student` gives it, for example `intermediate_size`.

        Raises:
            ValueError: If the configuration has no such size.
        """
        name_in_config = self.size_names.get(name, name)
        if not self.has_size(config, name):
            raise ValueError(f"{type(config).__name__} has no {name_in_config}: leave {name} at None.")
        return getattr(config, name_in_config)

    def set_size(self, config: PretrainedConfig, name: str, size: int) -> None:
        """Set a size by the name that `create_student` gives it."""
        setattr(config, self.size_names.get(name, name), size)

    def follow_sizes(self, config: PretrainedConfig, teacher_config: PretrainedConfig) -> None:
        """Set the values of a student's configuration that follow from its sizes.

        Embeddings that are as wide as the teacher's layers become as wide as the student's.

        Args:
            config: The student's configuration, which is changed.
            teacher_config: The teacher's configuration.
        """
        if not self.has_size(teacher_config, "embedding_size"):
            return
        if config.embedding_size == teacher_config.embedding_size == teacher_config.hidden_size:
            config.embedding_size = config.hidden_size

    def shares_layers(self, config: PretrainedConfig) -> bool:
        """Whether layers share their weights."""
        return False

    def layer_list(self, model: PreTrainedModel) -> tuple[nn.Module, str] | None:
        """Where the list of layers is.

        Returns:
            The module that holds the list and the name of its attribute. None if the model has no such list, or
            spreads each layer over several lists (XLM).
        """
        depth = model.config.num_hidden_layers
        lists = {
            (parent, name): sum(parameter.numel() for parameter in child.parameters())
            for parent in model.base_model.modules()
            for name, child in parent.named_children()
            if isinstance(child, nn.ModuleList) and len(child) == depth
        }
        if not lists:
            return None
        parent, name = max(lists, key=lists.get)
        return (parent, name) if sum(holder is parent for holder, _ in lists) == 1 else None

    def final_norm(self, model: PreTrainedModel) -> tuple[nn.Module, str] | None:
        """Where the norm after the last layer is, as in encoders that normalise the input of each sublayer.

        By default it is the last norm that the base model, or else the module with the list of layers, defines after
        the layers or names final.

        Returns:
            The module that holds the norm and the name of its attribute; None if there is no such norm.
        """
        layers = self.layer_list(model)
        if layers is None:
            return None
        for parent in (model.base_model, layers[0]):
            names = _norms_after(parent, getattr(*layers))
            if names:
                return parent, names[-1]
        return None

    def embeddings(self, model: PreTrainedModel) -> nn.Module:
        """The module with the embedding tables and, in most families, the `LayerNorm` of their sum.

        In families with `fits_students` its tables have BERT's names, `word_embeddings` and, if there are any,
        `position_embeddings` and `token_type_embeddings`. It is called with `input_ids` and, if the family has them,
        `token_type_ids`.
        """
        return model.base_model.embeddings

    def encoder(self, model: PreTrainedModel) -> nn.Module:
        """The module that runs the layers."""
        return model.base_model.encoder

    def blocks(self, model: PreTrainedModel) -> list[Block]:
        """The layers, in the form that `create_student(init="teacher")` fits."""
        raise NotImplementedError

    def relative_bias(self, model: PreTrainedModel) -> nn.Embedding | None:
        """The bias of attention scores by relative position that all layers share, a column for each attention head.

        It is None if there is no such table. With it, an attention head of a student has to stand for the same
        attention head of the teacher in every layer.
        """
        return None

    def embedding_projection(self, model: PreTrainedModel) -> nn.Linear | None:
        """The linear map from the embeddings to the first layer; None if there is none."""
        return None

    def with_embedding_projection(self, model: PreTrainedModel) -> PreTrainedModel:
        """A model with the same outputs, of an architecture whose embeddings may be narrower than its layers.

        It is the model itself if there is no other such architecture.
        """
        return model


def _norms_after(parent: nn.Module, layers: nn.ModuleList) -> list[str]:
    names, seen_layers = [], False
    for name, child in parent.named_children():
        seen_layers |= layers in child.modules()
        if type(child).__name__.endswith("Norm") and (seen_layers or "final" in name):
            names.append(name)
    return names


def architecture_of(config: PretrainedConfig) -> Architecture:
    """The adapter of a model's family by `config.model_type`; what all families share if there is none."""
    family = newest_match(Architecture, lambda family: config.model_type in family.model_types) or Architecture
    return family()


def model_types(trait: str) -> list[str]:
    """The model types whose adapters have a trait such as `fits_students`, sorted."""
    families = [family for family in subclasses(Architecture) if getattr(family, trait)]
    return sorted(model_type for family in families for model_type in family.model_types)
