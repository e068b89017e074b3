"""The Hub and the model card."""
