"""``python -m benchmarks evidence``: effect of each choice of the methods in the demo world.

The product's own recipes run the jobs. A question is a table, and a table is a list of variations of the demo's jobs
(:mod:`.tables`). Each variation runs for each seed (:mod:`.experiment`) in a laboratory that runs no job twice
(:mod:`.laboratory`).
"""
