"""Evaluation: sampled answers and their scores, likelihoods, and the sweep over edits of a base."""
