"""The options of a run, typed or in a recipe, and the run that they describe."""
