"""Is this machine ready? Checks of the software, the machine and the arithmetic, each with what to do about it."""
