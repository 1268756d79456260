"""Plug-ins that leave the model as it is, and learn what is put to it, or read from it."""
