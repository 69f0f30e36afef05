"""``armature bench api``: what the control plane's answers cost when its tables are full."""
