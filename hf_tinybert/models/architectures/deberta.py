"""DeBERTa."""

from .base import Architecture


class DebertaV2(Architecture):
    """DeBERTa-v2 and v3."""

    model_types = ("deberta-v2",)

    def final_norm(self, model):
        """None: the norm that follows the layers in its encoder belongs to the relative position embeddings."""
        return None
