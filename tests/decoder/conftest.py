"""The decoder that these tests share; imported here because the module needs torch, which other folders do without."""

from tests.support.serving import decoder_process, serving_bundles, serving_root

__all__ = ["decoder_process", "serving_bundles", "serving_root"]
