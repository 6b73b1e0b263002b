"""Watch hidden units while a network trains: running statistics of activations and gradients, on its own device.

`watch` and `watch_gradients` are found at the top, in `plasticity`.
"""
