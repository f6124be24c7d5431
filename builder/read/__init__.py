"""Random access to a dataset: index, open files, rows, views."""
