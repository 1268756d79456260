"""Knowledge neurons: how they are found, and the method that acts on them."""
