"""Commands that stand alone: demo, extract, info."""
