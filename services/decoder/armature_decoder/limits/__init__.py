"""Limits of a decoder process: tenants' quotas of requests and tokens, and the gate that drains requests."""
