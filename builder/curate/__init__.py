"""Choose what to train on: columns, SQL, samples, splits, selections. This wing copies no image."""
