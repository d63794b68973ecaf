"""A model behind HTTP: dynamic batching, the Open Inference Protocol, limits on everything, and an orderly end."""
