"""What is computed: one folder per operator family, each with its plain-PyTorch reference."""
