"""Guided generation: requests as streams in rows, runners that compute them, and one sampler over all.

From the outside in: :mod:`~armature.inference.batch`, :mod:`~armature.inference.request`,
:mod:`~armature.inference.sampler`, then the port :mod:`~armature.inference.runner` and what implements it.
"""
