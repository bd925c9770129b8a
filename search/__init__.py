"""Search timm backbones for real-versus-fake image detection under a parameter budget."""
