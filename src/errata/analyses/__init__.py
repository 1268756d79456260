"""One figure of a paper, one file."""
