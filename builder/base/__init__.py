"""Values, names and errors that every stage shares. Imports nothing of the package."""
