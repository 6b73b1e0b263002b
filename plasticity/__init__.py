"""Find, watch and treat the hidden units that decide whether a network can still learn."""

__version__ = "0.1.0"
