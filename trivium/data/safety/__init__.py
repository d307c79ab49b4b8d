"""Personal data, harmful texts, and who loses documents when a corpus is cleaned."""
