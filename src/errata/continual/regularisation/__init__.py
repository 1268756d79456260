"""Plug-ins that penalise changes of what earlier tasks need."""
