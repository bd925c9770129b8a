"""How a network does on images that were altered on their way to it."""
