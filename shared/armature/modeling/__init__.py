"""Models of transformers and peft, as the platform loads, adapts and writes them."""

from transformers.utils import logging as _transformers_logging

_transformers_logging.disable_progress_bar()  # a service's log is no place for bars
