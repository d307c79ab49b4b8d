"""Artifacts: the only code that writes files, and the past of each of them."""
