"""What is being turned down, given as labelled sentences."""
