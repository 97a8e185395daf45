"""Fits, figures and pages from stored results; reads the store only and trains nothing."""
