"""What may be trained: backbones, rules, starting weights."""
