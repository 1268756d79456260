"""Plug-ins that give each task weights of its own."""
