"""TOML files become checked values here, once for every room."""
