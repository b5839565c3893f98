"""Distributed training of PyTorch classifiers whose bits do not depend on how it ran."""

__version__ = "0.1.0"
