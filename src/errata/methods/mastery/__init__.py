"""Knowledge written into the weights: nothing extra runs at inference."""
