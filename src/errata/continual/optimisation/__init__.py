"""Plug-ins that say in which direction a step may go."""
