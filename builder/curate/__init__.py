"""Choose what to train on: columns, SQL, samples, splits, selections. Nothing here copies an image."""
