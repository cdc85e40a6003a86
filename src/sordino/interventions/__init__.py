"""Rules that turn expertise into dampening factors."""
