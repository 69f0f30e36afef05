"""The ``hf`` runner: any causal language model of transformers, and the reference for the others."""
