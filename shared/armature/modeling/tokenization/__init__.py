"""From text to token ids, equal in training, evaluation and serving; chat templates and vocabularies."""
