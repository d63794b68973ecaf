"""``python -m deploykit.cli``: the command where it is not on the PATH, and under torchrun."""

from deploykit.cli import app

if __name__ == "__main__":
    app()
