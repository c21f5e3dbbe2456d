"""The engine beside the plain path: seconds, operations and the floor under them."""
