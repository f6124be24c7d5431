"""Who runs the work: this process, several, or a Ray cluster. And progress."""
