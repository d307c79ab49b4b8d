"""A first look at data: what it is, how long, in which languages, how often the same, and what is odd about it."""
