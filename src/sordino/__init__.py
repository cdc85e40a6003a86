"""Turn a concept down inside a language model."""
