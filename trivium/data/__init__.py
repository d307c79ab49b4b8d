"""From sources to packed batches."""
