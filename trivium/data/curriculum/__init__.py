"""From easy to hard: how hard a sample is, and when it may first be drawn."""
