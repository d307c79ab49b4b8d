"""Who calls the trainer, and how often."""
