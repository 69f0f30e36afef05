"""Making any model folder plain: GGUF, quantised weights, multimodal wrappers, leftovers.

Each module makes one kind of folder plainer; :mod:`armature.modeling.imports.preparation` runs them in order. What
comes out is a folder that :func:`armature.modeling.checkpoints.folder.open_checkpoint` checks like any other.
"""
