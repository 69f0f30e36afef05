"""``armature bench serve``: what clients of a decoder see over HTTP, against static batching and during hot swaps."""
