"""Files as they come: which kind a file is, its text, and its rows as columns by name."""
