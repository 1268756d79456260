"""`python -m errata.cli` is `errata`."""

from errata.cli import main

main()
