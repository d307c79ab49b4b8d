"""Text and messages to token ids, one path for training, evaluation and serving."""
