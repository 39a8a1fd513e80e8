"""The harness behind ``sparsekern train``: small sparse networks, with and without CKA-SR.

Importing this package imports nothing else; its modules are imported by the command.
"""
