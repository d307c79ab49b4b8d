"""Model changes before training: adapters and the like, one file each."""
