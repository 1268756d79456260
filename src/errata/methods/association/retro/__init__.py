"""Facts read by chunked cross-attention in some blocks (RETRO; Borgeaud et al., 2022)."""
