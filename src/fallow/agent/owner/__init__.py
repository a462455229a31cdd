"""The owner's watch: sensors that tell whether the machine is its owner's now, and the shell around the policy."""
