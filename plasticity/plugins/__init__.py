"""Avalanche plugins: when a method runs. What it does is in plasticity.methods."""
