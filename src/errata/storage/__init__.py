"""Files: opened safely, written whole, locked, cached; and saved state, checked when it is read."""
