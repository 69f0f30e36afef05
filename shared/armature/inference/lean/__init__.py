"""The ``lean`` runner: decoding for the Llama family, with few and large operations per layer.

Public: :func:`armature.inference.lean.architecture.refusal`, :class:`armature.inference.lean.model.LeanModel`,
:class:`armature.inference.lean.runner.LeanRunner`. The folder holds one forward pass, a module per layer of it, from
``linears`` and ``norms`` up to ``model``, then ``step`` and ``runner``; that is why it holds more than a dozen.
"""
