"""The built-in stage types, one file each; shipped in the wheel as `deploy_runner.stages`."""
