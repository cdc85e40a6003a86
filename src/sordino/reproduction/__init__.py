"""Published rows, by name: their recipes, and our figures beside theirs."""
