"""Edits on a hub of models: an artifact becomes a repository with a card, and is had from there.

What goes up is the artifact's own files and the card that is written about them (`card`), in one
commit (`upload`). What comes down is read like a folder from anybody else (`download`).
"""

from errata.hub.card import About
from errata.hub.download import find, may_be_remote, read
from errata.hub.figures import Figures, figures_of, read_figures
from errata.hub.upload import CommitOptions, preview, push

__all__ = [
    "About",
    "CommitOptions",
    "Figures",
    "figures_of",
    "find",
    "may_be_remote",
    "preview",
    "push",
    "read",
    "read_figures",
]
