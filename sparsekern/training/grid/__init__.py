"""``sparsekern grid``: every method at several sparsities, plain, with CKA-SR and with AP."""
