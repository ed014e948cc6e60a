"""Messages between a remote reward and its client: media, prompts and scores, each as one blob."""
