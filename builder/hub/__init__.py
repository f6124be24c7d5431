"""The dataset card and the Hub."""
