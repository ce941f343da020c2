"""The page that goes with a policy: what it is, what it was trained on, how it does, and what it is not for."""
