"""Find the images of a folder that are nearest to a query, by the features of an encoder."""
