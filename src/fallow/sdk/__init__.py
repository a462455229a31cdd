"""What customers import, through `fallow` itself."""
