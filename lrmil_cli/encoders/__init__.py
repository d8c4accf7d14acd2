"""Vision transformers by timm name, hub name or file; their tokens and embeddings."""
