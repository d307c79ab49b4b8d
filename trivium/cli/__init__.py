"""Command line: one thin file for each verb; heavy imports happen inside the verbs."""
