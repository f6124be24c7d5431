"""Commands that stand alone: demo, extract, add-column, info."""
