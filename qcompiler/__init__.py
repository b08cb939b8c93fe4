"""qcompiler: trained neural networks as integer-only programs for x86, ARM and a simulated accelerator."""
