"""Settings of fits, one file a learner; they load no torch, so that the configuration is checked within a second."""
