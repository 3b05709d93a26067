"""The engine behind every door: settings, inputs, the reconstruction job, and the command line."""

__version__ = "0.1.0"
