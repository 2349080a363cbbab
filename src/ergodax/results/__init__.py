"""What results have in common: a game's own names on their numbers."""
