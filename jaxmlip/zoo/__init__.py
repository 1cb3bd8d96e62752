"""The public models: where they come from, and how to load them."""
