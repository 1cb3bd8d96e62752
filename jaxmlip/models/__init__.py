"""The networks: pure functions from a graph to quantities of its atoms, to be read beside their papers."""
