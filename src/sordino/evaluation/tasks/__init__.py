"""lm-evaluation-harness tasks on the demo kit's files, for machines without a model hub."""
