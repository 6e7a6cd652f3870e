"""Read everything that a checkpoint stores, and compare it with what it says of itself."""
