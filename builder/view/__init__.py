"""Look at a dataset: a browser page for all rows, and a report in one file. Nothing is copied or prepared first."""
