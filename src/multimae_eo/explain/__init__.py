"""What a path is and what to do with it, in plain words: `kinds.explain`."""
