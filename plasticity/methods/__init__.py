"""Methods against loss of plasticity, in pure PyTorch: statistics in, surgery out."""
