"""The inference server: started by `deploy-runner serve`, and copied into containers as `app/`.

It imports nothing of deploy-runner, so that what a container runs is, byte for byte, what is tested here.
"""
