"""What training does to images: views drawn from seeds, and the operations that make them."""
