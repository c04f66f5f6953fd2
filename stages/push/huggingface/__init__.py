"""What a push to the Hugging Face Hub consists of."""
