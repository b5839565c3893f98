"""Sums over shards along one fixed tree, and what is summed in one flat tensor."""
