"""Network architectures only: torch modules, one a file; no I/O, no training."""
