"""What is handed on: archives, containers, signatures."""
