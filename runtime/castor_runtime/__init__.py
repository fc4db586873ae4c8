"""The training runtime. Empty as yet: the package holds its place in the dependency order."""
