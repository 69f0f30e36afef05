"""OpenAI's shapes for jobs and models: ``/v1/fine_tuning/jobs`` and ``/v1/models``."""
