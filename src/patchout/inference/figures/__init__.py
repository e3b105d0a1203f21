"""Pictures of tags over time, of embeddings, of reconstructions."""
