"""What several resources share: queries, idempotency, rate counters and downloads."""
