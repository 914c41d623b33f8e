"""Learned methods: fitting networks to the cases of a training split, their weights, and what inference needs to apply them."""
