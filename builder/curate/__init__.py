"""Choosing what to train on: columns, selections, splits, duplicates."""
