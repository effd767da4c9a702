"""Models of how a taxi moves, behind one interface."""
