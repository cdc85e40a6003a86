"""Real weights and real data from ordinary packages, for machines without a model hub."""
