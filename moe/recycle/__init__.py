"""Growing real Hugging Face checkpoints: streamed, verified, with their lineage."""
