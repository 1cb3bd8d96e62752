"""Each module asks one question, is run from a checkout, and leaves a record."""
