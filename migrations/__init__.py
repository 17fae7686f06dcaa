"""Numbered ClickHouse migrations, shipped with the package as ``*.sql`` files."""
