"""``armature bench``: ratios against named peers, measured in one run on this machine."""
