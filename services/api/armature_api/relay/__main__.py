"""Entry point ``python -m armature_api.relay``."""

from armature_api.relay.relay import main

if __name__ == "__main__":
    main()
