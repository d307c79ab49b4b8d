"""Which documents are held out: whole groups, for good, and sealed test sets that no training may see."""
