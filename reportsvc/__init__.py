"""Exact push-delivery statistics behind the report APIs that teams already call."""

__version__ = "0.1.0"
