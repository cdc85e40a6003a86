"""One file per scorer; each states its limits."""
