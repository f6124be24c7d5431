"""Plan, convert, verify, extract: where source and store meet."""
