"""Models of transformers and PEFT: checkpoints, adapters and tokenization, below the inference engine."""

from transformers.utils import logging as _transformers_logging

_transformers_logging.disable_progress_bar()  # progress bars would end up in the services' logs
