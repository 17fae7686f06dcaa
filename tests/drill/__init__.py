"""Crash drills: a seeded load, everything that can go wrong, and an oracle that says what the reports must answer.

``make drill`` runs all of it; ``python -m tests.drill --quick`` the short form that is in the test suite too.
"""
