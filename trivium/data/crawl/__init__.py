"""The crawler: from start addresses to WARC files, politely, and continued after any stop."""
