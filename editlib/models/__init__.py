"""Language models as editing sees them: loading, where MLP memories sit, tokens, reading and replacing activations."""
