"""Tenants: their limits and their API keys."""
