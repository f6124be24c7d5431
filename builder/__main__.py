"""``python -m builder`` is the command ``laion6m``."""

from builder.cli.commands import command

if __name__ == "__main__":
    command()
