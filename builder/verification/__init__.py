"""Check a folder against itself and against its source."""
