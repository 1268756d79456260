"""Knowledge outside the weights: text put in front of a prompt, or a small helper model."""
