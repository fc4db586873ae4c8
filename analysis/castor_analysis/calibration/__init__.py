"""From measured runs to what the iteration simulator needs."""
