"""What a model's neurons know of a concept: the sweep, the AUROC, the artefact."""
