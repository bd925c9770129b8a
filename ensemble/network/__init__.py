"""The merged model as one nn.Module, and how it lies on disk."""
