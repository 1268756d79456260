"""The console: a page at `/console` to ask, to edit and to look back, in a browser.

It is made with NiceGUI, which brings its scripts along: nothing is fetched from elsewhere. It does
what the HTTP interface does, by the same rules of who may do what.
"""

from errata.serve.console.page import PATH, mount

__all__ = ["PATH", "mount"]
