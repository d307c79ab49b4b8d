"""Generate, score, advantage: what on-policy methods share."""
