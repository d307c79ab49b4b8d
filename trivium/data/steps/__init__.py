"""Steps of data pipelines; the folder is the registry."""
