"""Limits of a decoder process: tenants' quotas, and the gate that drains requests.

Quotas are of requests and of tokens.
"""
