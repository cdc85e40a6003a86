"""Open a model, find its sites, tokenise, generate."""
