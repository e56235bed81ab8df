"""One run of a method and many: settings, inputs, ranking, what is kept of a trained method."""
