"""Records of pairs: their features, which of them there are to be, and the Beam transforms that
read images and write records."""
