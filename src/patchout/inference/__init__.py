"""What a model says of sounds: tags, events, embeddings, scores; of many files in bulk."""
