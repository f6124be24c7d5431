"""Who runs the work: this process, several processes, or a Ray cluster. And the progress of it."""
