"""Objectives made from plain text: each file turns the tokens of a document into an input and its targets."""
