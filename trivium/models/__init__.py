"""Models: common parts, and one thin file for each family."""
