"""Images: sources, the manifest, decoding, transforms, sampling and loaders."""
