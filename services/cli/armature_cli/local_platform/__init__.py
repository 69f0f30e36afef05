"""The whole platform as processes on one machine: broker, services, supervision, ports."""
