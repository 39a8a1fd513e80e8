"""Dense products fused with a mask, on Triton."""
