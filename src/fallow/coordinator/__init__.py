"""The control plane: a shell around the core that serves subjects, owns jobs and applies plans."""
