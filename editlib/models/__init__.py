"""Language models as editing sees them: loading, where the MLP memories sit, tokens, and reading and replacing activations."""
