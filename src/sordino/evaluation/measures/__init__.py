"""One file per measure; each describes itself."""
