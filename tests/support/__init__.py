"""What several tests share: a running service, and a ClickHouse server that can be made to fail."""
