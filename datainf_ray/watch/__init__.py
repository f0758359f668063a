"""How far a run is, and how a person or a program sees it: bars, lines, a notebook's cell, JSON lines."""
