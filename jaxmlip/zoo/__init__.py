"""The public models: their sources, and how to load them."""
