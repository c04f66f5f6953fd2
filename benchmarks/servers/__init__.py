"""The servers that are compared, each as its own users write it; run in environments of their own."""
