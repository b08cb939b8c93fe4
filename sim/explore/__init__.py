"""What an exploration is, without any engine: the space, its points, the figures of merit, fronts and sensitivities."""
