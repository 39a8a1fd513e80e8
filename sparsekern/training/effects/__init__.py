"""``sparsekern effects``: whether methods do what they promise, each against its alternatives."""
