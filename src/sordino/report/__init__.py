"""The run's page, the model card, and what they are made of."""
