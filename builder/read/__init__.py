"""Random access to what was written, and what training does with it."""
