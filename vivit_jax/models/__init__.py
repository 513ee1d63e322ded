"""The four ViViT models: tokenise (embed), encode (attention, encoder), classify (vivit); and what they cost."""
