"""More rows from the rows there are: other words, slips of the keyboard, and texts rewritten by a model."""
