"""The networks: pure functions from a graph to quantities of its atoms, read beside their papers."""
