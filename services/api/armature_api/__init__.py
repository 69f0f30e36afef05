"""The API: the control plane over HTTP, its relay and its bootstrap."""
