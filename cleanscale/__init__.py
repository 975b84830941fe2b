"""Find wrong labels and train better classifiers. See README.md."""
