"""The ``lean`` back end: decoding for the Llama family, with few and large operations per layer.

Public: :func:`armature.inference.lean.architecture.refusal`, :class:`armature.inference.lean.model.LeanModel`,
:class:`armature.inference.lean.runner.LeanRows`.
"""
