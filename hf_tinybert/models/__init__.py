"""What a transformers model is to this package."""
