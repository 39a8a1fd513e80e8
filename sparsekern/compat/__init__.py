"""The interfaces of other packages over sparsekern, so that a script changes one import."""
