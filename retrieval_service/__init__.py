"""Evidence: encoders, FAISS indexes, shard actors and the client that episodes ask."""
