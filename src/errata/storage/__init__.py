"""Files on disk (opened safely, written whole, locked, cached), and checks of saved state."""
