"""Inputs of jobs and profile versions: ids resolved to rows, parts checked against each other."""
