"""The machine below a worker: devices and their memory, processes, work directories, failures."""
