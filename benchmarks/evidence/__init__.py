"""``armature bench evidence``: what each choice of the methods does in the demo world, by the product's own recipes.

A question is a table, a table a list of variations of the demo's jobs (:mod:`.tables`). Each variation is carried out
for each seed (:mod:`.experiment`) in a laboratory that does no job twice (:mod:`.laboratory`).
"""
