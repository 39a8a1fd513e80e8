"""``sparsekern report``: the runs of many experiments compared, as tables and pictures."""
