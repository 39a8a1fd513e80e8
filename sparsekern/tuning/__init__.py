"""``sparsekern tune``: the rates of this machine, by which masked products choose an algorithm."""
