"""What the tools that put runs through hardship share."""
