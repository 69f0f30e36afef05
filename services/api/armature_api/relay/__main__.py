"""``python -m armature_api.relay`` starts the relay."""

from armature_api.relay.relay import main

main()
