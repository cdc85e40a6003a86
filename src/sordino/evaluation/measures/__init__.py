"""One file a measure; each describes itself."""
