"""The command line: arguments, options, one call, output."""
