"""Calls of all sorts, made from the document and held against it."""
