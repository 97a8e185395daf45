"""The science: Mixture-of-Experts models, their growth, training and evaluation. Knows nothing of sweeps."""
