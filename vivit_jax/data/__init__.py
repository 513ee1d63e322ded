"""Sources of clips, their sampling and augmentation (numpy only), and the input pipeline around them."""
