"""Our optimiser loop: transform models, step rules, multi-resolution, and any function of `metrics.similarity` as what is optimised."""
