"""Engrams in working, short-term and long-term memory (Memoria; Park and Bak, 2024)."""
