"""What `gpu_check.py` of a model directory finds out about a device, in groups of checks."""
