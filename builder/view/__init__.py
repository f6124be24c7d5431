"""Look at a dataset: a browser over all of it, and a report in one file. Nothing is copied or prepared."""
