"""``python -m steploom_distill``."""

from .cli import app

if __name__ == "__main__":
    app()
