"""Memory beside the weights: a router, a lookup, a second matrix."""
