"""The relay: the process that dispatches, requeues and sweeps, and publishes the serving snapshot."""
