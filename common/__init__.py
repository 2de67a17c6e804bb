"""What the model directories share. Importing this package imports nothing.

Paddle reads thread counts and CPU flags when it is first imported, so
`common.machine.environment` must be able to run before it.
"""
