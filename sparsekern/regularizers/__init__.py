"""Plug-in regularisers: attach one to a model, add its value to the loss."""
