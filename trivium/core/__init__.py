"""The loop, its engines and its state."""
