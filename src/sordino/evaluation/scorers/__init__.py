"""One file a scorer; each says what it is blind to."""
