"""The machine a process runs on: CPU settings, devices, other processes, memory."""
