"""Networks, distributions, and the VAEs that are made of them."""
