"""Many training runs in one folder."""
