"""The settings of lesions, learnt from labelled slides."""
