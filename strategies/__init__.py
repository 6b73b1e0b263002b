"""Ready-made Avalanche strategies by name."""
