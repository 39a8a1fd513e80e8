"""What the families of Triton kernels share: launch configurations, the device, the launching."""
