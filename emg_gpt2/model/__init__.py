"""The model: configuration, normalisation, tokenisers, backbone, saving and loading."""
