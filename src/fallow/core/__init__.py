"""Pure decisions: synchronous functions and classes over plain data. Time and randomness come in as arguments."""
