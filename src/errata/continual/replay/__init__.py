"""Plug-ins that keep some examples of earlier tasks."""
