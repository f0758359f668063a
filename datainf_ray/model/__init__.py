"""Base and adapter become a replica, and a batch of examples becomes gradients. Knows nothing of Ray."""
