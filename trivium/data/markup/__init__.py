"""From markup to plain text: what several readers share."""
