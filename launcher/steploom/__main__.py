"""`python -m steploom` is `steploom`."""

from steploom.cli import main

main()
