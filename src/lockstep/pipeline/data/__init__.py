"""Data: what exists and where, arrays on disk, shards, and the order in which samples are seen."""
