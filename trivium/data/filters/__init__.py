"""What the quality filters measure in a text; `data/steps/` holds the steps that decide by it."""
