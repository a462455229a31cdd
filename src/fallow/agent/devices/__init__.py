"""GPUs of this machine: what they are, who has them, what they do, and how fast they are."""
