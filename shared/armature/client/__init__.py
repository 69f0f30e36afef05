"""The Python client of the control plane."""

from armature.client.client import Client, JobFailed, RequestFailed

__all__ = ["Client", "JobFailed", "RequestFailed"]
