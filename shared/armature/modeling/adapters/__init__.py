"""Adapters on a model: ARMs (PBLoRA as a PEFT tuner) and their files, plain LoRAs, offloaded models."""
