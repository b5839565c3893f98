"""What is kept of a run: the format, the store, when to save, and whether ranks agree."""
