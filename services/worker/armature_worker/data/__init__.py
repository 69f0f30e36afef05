"""Data sets as training and evaluation read them: tokenised rows, preference pairs, batches."""
