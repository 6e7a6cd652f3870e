"""Triton kernels of the bag embedding and of the loss, and the choice between them and torch."""
