"""The servers of a dry run: an AWS and a Hugging Face Hub on loopback."""
