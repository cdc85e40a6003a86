"""Questions about a model, each answered by a command: arms, figures with intervals, a page."""
