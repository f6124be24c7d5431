"""The `datasets` builder: units of work, streaming, rows."""
