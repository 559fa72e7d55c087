"""Real models in every part: chat models, painters and readers that people bring."""
