"""``sparsekern tune``: what choices depend on here: rates of algorithms, launch configurations."""
