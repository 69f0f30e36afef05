"""The ``lean`` back end: decoding for the Llama family, with few and large operations per layer.

Public: :func:`armature.modeling.lean.architecture.refusal`, :class:`armature.modeling.lean.model.LeanModel`,
:class:`armature.modeling.lean.rows.LeanRows`.
"""
